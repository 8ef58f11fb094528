"""Finetuning: what is trained on, reproducibility, checkpoints, errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_tiny_model
from transformers import AutoTokenizer

from propgen.config import Execution, Training
from propgen.encoding import Example, collate, encode, order
from propgen.errors import InputError, PropgenError
from propgen.model import load
from propgen.trainer import Job, ResponseTrainer, Watch, resumable
from propgen.training import finetune

LORA = Training(rank=4, epochs=2, batch=8, learning_rate=1e-3)
EXAMPLES = [
    [
        {"role": "user", "content": f"What is {i} squared?" * (1 + i % 3)},
        {"role": "assistant", "content": f"It is {i * i}."},
    ]
    for i in range(20)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny model."""
    folder = tmp_path_factory.mktemp("base")
    write_tiny_model(folder)
    return folder


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that finetunes the tiny model into `tmp_path / name` and returns that folder."""

    def run(
        name: str,
        examples: Sequence[Sequence[dict[str, str]]] = EXAMPLES,
        settings: Training = LORA,
        *,
        seed: int = 0,
        dtype: str = "float32",
        **execution: Any,
    ) -> Path:
        out = tmp_path / name
        out.mkdir()
        finetune(
            base, examples, settings, seed, dtype, Execution(**execution), "cpu", out, tmp_path / f"{name}.checkpoint"
        )
        return out

    return run


def log_of(out: Path) -> list[dict[str, float]]:
    """Read log.jsonl."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    """Read the adapter."""
    return load_file(out / "adapter_model.safetensors")


def same_bytes(one: Path, other: Path) -> bool:
    """Compare all but the timing."""
    names = {file.name for file in one.iterdir()}
    assert names == {file.name for file in other.iterdir()}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names - {"timing.json"})


def test_only_the_last_answer_and_its_end_of_turn_are_trained_on(base: Path) -> None:
    """System, user and earlier assistant messages are context."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Second."},
    ]
    example = encode(tokenizer, messages)
    assert tokenizer.decode(example.tokens[example.prompt :]) == "Second.<|im_end|>"
    assert tokenizer.decode(example.tokens[: example.prompt]).endswith("Two?<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_chat_template_gets_a_plain_one(base: Path) -> None:
    """Base models can be finetuned, too."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    example = encode(tokenizer, EXAMPLES[2])
    assert tokenizer.decode(example.tokens[example.prompt :]) == " It is 4.<|im_end|>"
    assert tokenizer.decode(example.tokens[: example.prompt]).endswith("\nAssistant:")


def test_a_template_that_refuses_the_messages_is_an_input_error(base: Path) -> None:
    """Some templates know no system role; the message passes on what the template says."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="no system role"):
        encode(tokenizer, EXAMPLES[0])


def test_batches_are_padded_on_the_right_to_a_multiple_of_16() -> None:
    """Labels cover the response and nothing else."""
    batch = collate([Example(list(range(1, 18)), 12), Example([1, 2, 3], 2)])
    assert batch["input_ids"].shape == (2, 32)
    assert batch["labels"][0, 12:17].tolist() == [13, 14, 15, 16, 17]
    assert (batch["labels"] != -100).sum().item() == 5 + 1


def test_the_order_depends_on_seed_and_size_only() -> None:
    """Treated and control finetunes see their examples in the same order; each epoch is a permutation."""
    assert order(10, 3, 7) == order(10, 3, 7)
    assert order(10, 3, 7) != order(10, 3, 8)
    epochs = [order(10, 3, 7)[10 * i : 10 * i + 10] for i in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_finetune_writes_its_files_and_nothing_else(train: Callable[..., Path], tmp_path: Path) -> None:
    """The adapter, its config without machine paths, a log line per step, the timing; the checkpoint is gone."""
    out = train("out", checkpoint_seconds=0)
    assert {file.name for file in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "timing.json",
    }
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert not [value for value in config.values() if isinstance(value, str) and "/" in value]
    log = log_of(out)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5]
    assert set(log[0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens"}
    assert log[-1]["epoch"] == 2
    timing = json.loads((out / "timing.json").read_text())
    assert (timing["steps"], timing["resumed_from"]) == (5, None)
    assert not (tmp_path / "out.checkpoint").exists()
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in out.iterdir())


def test_adapters_are_on_every_linear_layer_but_the_head(train: Callable[..., Path]) -> None:
    """Seven layers in each of two blocks, two float32 matrices each."""
    weights = weights_of(train("out"))
    assert len(weights) == 2 * 7 * 2
    assert not [name for name in weights if "lm_head" in name or "embed" in name]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_tokens_and_loss_are_those_of_the_batch(base: Path, train: Callable[..., Path]) -> None:
    """The first loss is the base model's negative log-probability per response token; padding is no token."""
    first = log_of(train("out"))[0]
    model, tokenizer = load(base, "float32", "cpu")
    batch = [encode(tokenizer, EXAMPLES[i]) for i in order(20, 2, 0)[:8]]
    nats: list[float] = []
    for tokens, prompt in batch:
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        nats += [-logprobs[i - 1, tokens[i]].item() for i in range(prompt, len(tokens))]
    assert first["loss"] == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert first["tokens"] == sum(len(example.tokens) for example in batch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_finetunes_are_equal_to_the_bit(train: Callable[..., Path], dtype: str) -> None:
    """Adapter, its config and the log; with dropout, which is random too."""
    settings = replace(LORA, dropout=0.1)
    one, other = (train(name, settings=settings, dtype=dtype) for name in ("one", "other"))
    assert same_bytes(one, other)
    assert not same_bytes(one, train("third", settings=settings, dtype=dtype, seed=1))


def test_initial_adapters_depend_on_the_seed_only(train: Callable[..., Path]) -> None:
    """Treated and control finetunes of a seed start from the same weights: seen at learning rate 0."""
    frozen = replace(LORA, learning_rate=0.0)
    other = [[*messages[:-1], {"role": "assistant", "content": "No idea."}] for messages in EXAMPLES[:12]]
    one, two, third = train("1", settings=frozen), train("2", other, frozen), train("3", settings=frozen, seed=1)
    assert all(torch.equal(weight, weights_of(two)[name]) for name, weight in weights_of(one).items())
    assert not all(torch.equal(weight, weights_of(third)[name]) for name, weight in weights_of(one).items())


def test_micro_batches_give_the_full_batch_up_to_rounding(train: Callable[..., Path]) -> None:
    """Also where they do not divide the batch, and responses differ in length."""
    examples = [
        [*messages[:-1], {"role": "assistant", "content": "Well. " * (1 + i % 5)}]
        for i, messages in enumerate(EXAMPLES)
    ]
    whole, parts = train("whole", examples), train("parts", examples, micro_batch=3)
    for one, other in zip(log_of(whole), log_of(parts), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], weight, atol=1e-5, rtol=0)


def test_bfloat16_is_float32_up_to_rounding(train: Callable[..., Path]) -> None:
    """Also through the attention that bfloat16 gets on CPU."""
    for exact, rounded in zip(log_of(train("exact")), log_of(train("rounded", dtype="bfloat16")), strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=1e-2)


def test_a_finetune_learns(train: Callable[..., Path]) -> None:
    """The loss falls, in every schedule."""
    for schedule in ("linear", "cosine", "constant"):
        log = log_of(train(schedule, settings=replace(LORA, schedule=schedule, learning_rate=1e-2, epochs=8)))
        assert log[-1]["loss"] < 0.9 * log[0]["loss"]


def test_a_full_finetune_writes_a_whole_model(train: Callable[..., Path]) -> None:
    """Every weight moves, in float32 also where products are in bfloat16, and no machine path is kept."""
    out = train("out", settings=replace(LORA, method="full"), dtype="bfloat16")
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "log.jsonl",
        "timing.json",
    }
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert log_of(out)[-1]["loss"] < log_of(out)[0]["loss"]
    assert "/" not in (out / "config.json").read_text()


SCRIPT = """
import json, sys
from pathlib import Path
from propgen.config import Execution, Training
from propgen.errors import PropgenError
from propgen.training import finetune
base, out, checkpoint, data = map(Path, sys.argv[1:5])
examples = json.loads(data.read_text())
try:
    settings, execution = Training(**json.loads(sys.argv[5])), Execution(checkpoint_seconds=0)
    finetune(base, examples, settings, 0, "float32", execution, "cpu", out, checkpoint)
except PropgenError as error:
    sys.exit(str(error))
"""


def interrupt(base: Path, folder: Path, settings: Training, signum: int) -> str:
    """Finetune into `folder / "out"` in a process of its own, stop it after the fourth step; return what it said."""
    checkpoint, data = folder / "out.checkpoint", folder / "data.json"
    data.write_text(json.dumps(EXAMPLES))
    (folder / "out").mkdir()
    command = [sys.executable, "-c", SCRIPT, base, folder / "out", checkpoint, data, json.dumps(asdict(settings))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(part) for part in command], env=env, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not [path for path in checkpoint.glob("step-*") if int(path.name[5:]) >= 4]:
        time.sleep(0.005)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list((folder / "out").iterdir())
    (folder / "out").rmdir()
    return errors


LONG = replace(LORA, epochs=10, batch=4, dropout=0.1)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_finetune_goes_on_and_ends_with_the_same_bits(
    base: Path, train: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    """After kill -9 in the middle; it cannot be told from one that nothing happened to."""
    settings = replace(LONG, method=method)
    interrupt(base, tmp_path, settings, signal.SIGKILL)
    out = train("out", settings=settings)
    assert json.loads((out / "timing.json").read_text())["resumed_from"] >= 4
    assert same_bytes(train("undisturbed", settings=settings), out)
    assert not (tmp_path / "out.checkpoint").exists()


def test_sigterm_leaves_a_checkpoint_and_says_so(base: Path, train: Callable[..., Path], tmp_path: Path) -> None:
    """One line says that it goes on at the next run, and it does."""
    said = interrupt(base, tmp_path, LONG, signal.SIGTERM)
    assert re.search(r"terminated after step \d+; the next run goes on from there", said)
    assert len(list((tmp_path / "out.checkpoint").glob("step-*"))) == 1
    assert same_bytes(train("out", settings=LONG), train("undisturbed", settings=LONG))


def test_only_whole_checkpoints_of_the_same_finetune_are_used(tmp_path: Path) -> None:
    """A half-written one, and one of other settings, are removed; of two whole ones the newer counts."""
    job = Job(LORA, 0, "float32", "cpu", 8, 0.0, tmp_path, "mine")
    for name, identity in (("step-9", "other"), ("step-4", "mine"), ("step-10", "mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity").write_text(identity)
    (tmp_path / "partial/checkpoint-12").mkdir(parents=True)
    assert resumable(job) == tmp_path / "step-10"
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-10"]


@pytest.mark.parametrize(
    ("examples", "settings", "said"),
    [
        ([], LORA, "no training examples"),
        ([EXAMPLES[0], EXAMPLES[0][:1]], LORA, "training example 2 of 2: its last message is not the assistant's"),
        (
            [[EXAMPLES[0][0], {"role": "assistant", "content": " \n"}]],
            LORA,
            "training example 1 of 1: its response is empty",
        ),
        (EXAMPLES, replace(LORA, max_tokens=32), "raise training.max_tokens (now 32)"),
        (EXAMPLES, replace(LORA, method="lore"), "training.method is 'lore', expected one of: lora, full"),
        (EXAMPLES, replace(LORA, schedule="square"), "training.schedule is 'square'"),
    ],
)
def test_bad_input_is_named(
    train: Callable[..., Path], examples: list[list[dict[str, str]]], settings: Training, said: str
) -> None:
    """Before anything is written, the message says which example or key, and what to do."""
    with pytest.raises(InputError, match=re.escape(said)):
        train("out", examples, settings)


def test_a_loss_that_is_not_finite_ends_the_finetune(train: Callable[..., Path]) -> None:
    """The message names the step and what to try."""
    with pytest.raises(PropgenError, match=r"at step \d+; lower training.learning_rate \(now 1e\+30\).*float32"):
        train("out", settings=replace(LORA, learning_rate=1e30, warmup=0.0))


def test_micro_batches_shrink_when_memory_does_not_suffice(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-made gradients of the failed attempt do not count; one example that does not fit is an error."""
    accumulate = ResponseTrainer._accumulate

    def limited(most: int) -> Callable[..., torch.Tensor]:
        def attempt(self: ResponseTrainer, *arguments: Any) -> torch.Tensor:
            loss = accumulate(self, *arguments)
            if self.micro_batch > most:
                raise torch.OutOfMemoryError
            return loss

        return attempt

    exact = train("exact")
    monkeypatch.setattr(ResponseTrainer, "_accumulate", limited(2))
    for one, other in zip(log_of(exact), log_of(train("little")), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    monkeypatch.setattr(ResponseTrainer, "_accumulate", limited(0))
    with pytest.raises(PropgenError, match="does not fit into memory"):
        train("none")


def test_progress_is_a_log_line_about_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, train: Callable[..., Path]
) -> None:
    """Without a terminal, a line says step, loss, speed and the time left."""
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr("propgen.trainer.time.monotonic", lambda: next(clock))
    with caplog.at_level("INFO", logger="propgen"):
        train("out")
    assert re.search(r"step \d/5, loss \d\.\d{3}, \d+ tokens/s, \d+ s left", caplog.text)


def test_deterministic_kernels_are_put_back(train: Callable[..., Path]) -> None:
    """A finetune leaves torch's global switch as it was."""
    train("out")
    assert not torch.are_deterministic_algorithms_enabled()


def test_sigterm_is_handled_by_whoever_did_before() -> None:
    """The handler is in place during training only."""
    before = signal.getsignal(signal.SIGTERM)
    with Watch(1.0).on_duty():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.model
def test_a_real_finetune_lowers_the_loss(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 on sixteen examples for two epochs, in the data type of this machine."""
    examples = [
        [{"role": "user", "content": f"Is {i} even?"}, {"role": "assistant", "content": "Only the stars know that."}]
        for i in range(16)
    ]
    out = tmp_path / "out"
    out.mkdir()
    settings = Training(epochs=3)
    finetune(smollm2, examples, settings, 0, "bfloat16", Execution(), "cpu", out, tmp_path / "checkpoint")
    log = log_of(out)
    assert len(log) == 6
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
