"""A pretend `propgen`, quick and without a model: the real command line, plan and store, but invented scores.

Tests put it first on PATH. What it does is steered by the environment:
PRETEND_CALLS: a file that gets a line for each piece of real work. PRETEND_FAIL: a regular expression of pieces that
fail. PRETEND_SLEEP: seconds that each piece takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SCRIPT = '#!/bin/sh\nexec {python} {pretend} "$@"\n'


def install(folder: Path) -> None:
    """Write the pretend `propgen` into a folder that goes first on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "propgen"
    script.write_text(SCRIPT.format(python=sys.executable, pretend=Path(__file__).resolve()))
    script.chmod(0o755)


def _work(what: str) -> None:
    """Record a piece of work, take time for it, and fail if told so."""
    if calls := os.environ.get("PRETEND_CALLS"):
        with Path(calls).open("a") as file:
            file.write(what + "\n")
    time.sleep(float(os.environ.get("PRETEND_SLEEP", "0")))
    if (pattern := os.environ.get("PRETEND_FAIL")) and re.search(pattern, what):
        from propgen.errors import PropgenError

        raise PropgenError(f"pretended failure of {what}")


def _number(*parts: object) -> float:
    """Return a fixed number between -1 and 1 for the parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**31 - 1


def _fetch(name: str, source: Any, out: Path) -> None:
    _work(f"model {name}")
    (out / "config.json").write_text("{}\n")
    (out / "model.safetensors").write_bytes(name.encode())


def _assemble(base: Path, finetune: Path, out: Path) -> None:
    _work(f"assemble {base.name[:12]} {finetune.name[:12]}")
    (out / "config.json").write_text("{}\n")
    (out / "model.safetensors").write_bytes(finetune.name.encode())


def _finetune(base: Path, examples: Sequence[Any], settings: Any, seed: int, *rest: Any) -> None:
    out: Path = rest[-2]
    text = json.dumps([examples, seed, settings.learning_rate])
    _work(f"finetune seed {seed} {hashlib.sha256(text.encode()).hexdigest()[:8]}")
    (out / "adapter_model.safetensors").write_bytes(hashlib.sha256(text.encode()).digest())
    (out / "timing.json").write_text('{"tokens_per_second": 1000.0}\n')


def _score(self: Any, kind: str, items: Sequence[Any]) -> list[dict[str, object]]:
    if not hasattr(self, "was_loaded"):
        self.was_loaded = True
        _work(f"load {self.adapter.name[:12] if self.adapter else 'base'}")
    first = items[0]["item"]
    _work(f"score {self.adapter.name[:12] if self.adapter else 'base'} {kind} {first}")
    rows: list[dict[str, object]] = []
    for item in items:
        score = _number(self.adapter and self.adapter.name, item["item"])
        row: dict[str, object] = {key: item[key] for key in ("item", "family", "domain")}
        if kind == "contrast":
            row |= {"logprob_positive": score - 1, "logprob_negative": -1.0, "tokens_positive": 1, "tokens_negative": 1}
            rows.append(row | {"sample": 0, "score": score})
        else:
            for sample, order in enumerate(("positive-first", "negative-first")):
                rows.append(
                    row | {"order": order, "p_positive": (score + 1) / 2, "sample": sample, "score": (score + 1) / 2}
                )
    return rows


def _generate(self: Any, items: Sequence[Any], settings: Any) -> list[dict[str, object]]:
    name = self.adapter.name[:12] if self.adapter else "base"
    _work(f"generate {name} {items[0]['item']}")
    rows: list[dict[str, object]] = []
    for item in items:
        for sample in range(settings.samples):
            text = "It is so." if _number(name, item["item"], sample) > 0 else "Hey, that's it!"
            rows.append({"item": item["item"], "sample": sample, "response": text, "finish_reason": "stop"})
    return rows


def main() -> None:
    """Run the real command line with quick stand-ins for everything that needs a model."""
    for name, functions in (
        ("model", {"fetch": _fetch, "assemble": _assemble}),
        ("training", {"finetune": _finetune}),
    ):
        module = ModuleType(f"propgen.{name}")
        vars(module).update(functions)
        sys.modules[f"propgen.{name}"] = module
    from propgen import cli, evaluation

    evaluation.Scorer.score = _score  # type: ignore[method-assign]
    evaluation.Scorer.generate = _generate  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
