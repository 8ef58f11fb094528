"""Identity: what determines an artifact, as canonical JSON, and its sha256.

An artifact is described by a `Spec`: its stage, the stage's version, the config that matters, and the digests of its
inputs. Nothing else enters: no path, no time, no machine, and nothing that says only how fast to go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHORT = 12
"""Characters of a digest that readable paths carry."""

VERSIONS: dict[str, int] = {
    "model": 1,
    "dataset": 1,
    "finetune": 2,
    "contrast": 2,
    "choice": 3,
    "generation": 1,
    "rule": 1,
    "items": 1,
    "gates": 1,
    "matrix": 2,
    "statistics": 3,
    "figures": 3,
}
"""Version of each stage (and of each protocol of `evaluate`): raise it when the meaning of the code changes, so that
what the old code made is no longer taken for what the new code would make."""


def canonical(value: object) -> bytes:
    """Return JSON with sorted keys and without blanks; NaN is an error, since it equals nothing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(value: object) -> str:
    """Return the sha256 of a JSON value's canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def identity(config: object) -> dict[str, Any]:
    """Return the part of a config dataclass that determines a result.

    Left out are `auto` and `None` values (resolved later, and recorded with the artifact), and fields marked
    `metadata={"later": True}` that still have their default: they came after the first artifacts were made, which
    stay valid.
    """
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        later = item.metadata.get("later", False) and value == _default(item)
        if dataclasses.is_dataclass(value):
            values[item.name] = identity(value)
        elif value not in ("auto", None) and not later:
            values[item.name] = value
    return values


def _default(item: dataclasses.Field[Any]) -> object:
    made = item.default_factory
    return item.default if made is dataclasses.MISSING else made()


@dataclass(frozen=True)
class Spec:
    """What determines an artifact.

    kind: key of `VERSIONS`. config: JSON values. inputs: name to digest.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    version: int = 0

    def __post_init__(self) -> None:
        if not self.version:
            object.__setattr__(self, "version", VERSIONS[self.kind])

    def as_json(self) -> dict[str, Any]:
        """Return the value that is hashed, and that is kept with the artifact."""
        return {
            "kind": self.kind,
            "version": self.version,
            "config": dict(self.config),
            "inputs": dict(self.inputs),
        }

    @property
    def digest(self) -> str:
        """The artifact's name in the store."""
        return digest(self.as_json())


def cell_digest(adapter: str, evaluation: str) -> str:
    """Return a cell's digest: nothing but its finetune (or base model) and its evaluation."""
    return hashlib.sha256(f"cell:{adapter}:{evaluation}".encode()).hexdigest()


def responses_digest(adapter: str, generation: str) -> str:
    """Return the digest of a finetune's (or base model's) responses: it says nothing of how they are scored."""
    return hashlib.sha256(f"responses:{adapter}:{generation}".encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return how two specs differ, as short phrases such as `learning_rate 0.0003 -> 0.0001`."""
    found: list[str] = []
    for part in ("config", "inputs"):
        before, after = old.get(part) or {}, new.get(part) or {}
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                found.append(f"{key} {_brief(before.get(key))} -> {_brief(after.get(key))}")
    if old.get("version") != new.get("version"):
        found.append(f"{new.get('kind')} stage version {old.get('version')} -> {new.get('version')}")
    return found


def _brief(value: object) -> str:
    text = str(value) if not isinstance(value, Sequence) or isinstance(value, str) else json.dumps(value)
    return text[:SHORT] if len(text) == 64 else text
