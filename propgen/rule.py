"""Rules: an item's two regular expressions say at which pole of the trait a response is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from propgen.bank import POLES, Bank, Item, load
from propgen.errors import InputError

FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
r"""How patterns are read: `^` and `$` also match at line breaks, `.` matches them too; `\A` is the response's start."""


def load_rules(path: Path, trait: Bank) -> Bank:
    """Read a trait's rule items and check every line; the InputError of a bad one names file and line.

    trait: its main bank, whose training domains tell `id` from `far`, and which may hold none of the prompts.
    """
    bank = load(path, check=_check)
    prompts = {json.dumps(item["prompt"]): item["item"] for item in trait.items}
    for item in bank.items:
        if same := prompts.get(json.dumps(item["prompt"])):
            raise InputError(
                f"{path}: item '{item['item']}' has the prompt of '{same}' in {trait.path.name}; reword it"
            )
    return Bank(path, bank.items, trained=trait.training_domains)


def _check(place: str, row: Mapping[str, Any]) -> None:
    """Rule items are only asked, never trained on, and their patterns are Python's."""
    if row["split"] != "test":
        raise InputError(f"{place}: split is '{row['split']}'; rule items never train, write test")
    for pole in POLES:
        try:
            re.compile(row[pole], FLAGS)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{place}: '{pole}' is no regular expression of Python: {error}; correct it") from error


def score(items: Sequence[Item], responses: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the rows of a cell from responses (item, sample, response, finish_reason), in their order.

    score: 1 if `positive` matches somewhere in the response and `negative` does not, 0 if it is the other way round;
    None, which enters no mean, if neither or both do.
    """
    named = {item["item"]: item for item in items}
    return [_row(named[str(response["item"])], response) for response in responses]


def _row(item: Item, response: Mapping[str, object]) -> dict[str, object]:
    patterns = cast(Mapping[str, str], item)
    text = str(response["response"])
    positive, negative = (re.search(patterns[pole], text, FLAGS) is not None for pole in POLES)
    return {
        "item": item["item"],
        "family": item["family"],
        "domain": item["domain"],
        "sample": response["sample"],
        "score": None if positive == negative else float(positive),
        "response": text,
        "finish_reason": response["finish_reason"],
    }


SCORERS = {"rule": score}
"""Kinds of protocol that score responses: (items, responses) -> rows of a cell. They need no model."""
