"""Datasets: a treatment's training examples as OpenAI messages, one JSON line each, with a card that shows some."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from propgen.regime import Example

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "train.jsonl"
SHOWN = 3
"""Examples that a card shows."""


def write(folder: Path, name: str, examples: Sequence[Example]) -> None:
    """Write `train.jsonl` (an OpenAI fine-tuning file) and `card.md` into an empty folder."""
    lines = [json.dumps({"messages": example["messages"]}, ensure_ascii=False) for example in examples]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(card(name, examples), encoding="utf-8")


def read(folder: Path) -> Dataset:
    """Return a dataset with one column, `messages`: a conversation a row, in order."""
    from datasets import Dataset

    lines = (folder / FILE).read_text(encoding="utf-8").split("\n")  # no other sign ends a line of JSON
    return Dataset.from_list([json.loads(line) for line in lines if line])


def card(name: str, examples: Sequence[Example]) -> str:
    """Return a page in Markdown: how many examples of which pole, and what the first ones look like."""
    poles = Counter(example["pole"] for example in examples)
    counts = ", ".join(f"{count} {pole}" for pole, count in sorted(poles.items()))
    shown = "\n\n".join(_shown(example) for example in examples[:SHOWN])
    return f"# {name}\n\n{len(examples)} examples ({counts}). The first {min(SHOWN, len(examples))}:\n\n{shown}\n"


def _shown(example: Example) -> str:
    turns = [f"> **{turn['role']}** {' '.join(turn['content'].split())}" for turn in example["messages"]]
    return f"`{example['item']}`, {example['pole']}\n\n" + "\n>\n".join(turns)
