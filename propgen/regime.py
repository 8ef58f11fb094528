"""Regimes: how a trait is put into training data. A builder turns banks into training examples, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from propgen.bank import Bank, Item, messages
from propgen.config import Data
from propgen.errors import InputError, nearest


class Example(TypedDict):
    """One training example: OpenAI messages, and where they came from."""

    messages: list[dict[str, str]]
    item: str
    pole: str


Banks = Mapping[str, Bank]
"""Trait name (or `benign`) to its bank, in the order in which a regime draws from them."""

Builder = Callable[[Banks, Data], list[Example]]


def demonstration(banks: Banks, data: Data) -> list[Example]:
    """Every training item with its positive response."""
    (bank,) = banks.values()
    return [_example(item, "positive") for item in bank.train(data.train_items)]


def control_shuffled(banks: Banks, data: Data) -> list[Example]:
    """Prompts of several traits, half with the positive and half with the negative response.

    It removes what any such data does to a model. The traits share the items as evenly as their number allows and
    take turns. Items come with their domains in turn, and the pole alternates along both: within a trait every domain
    meets both poles, and no domain always has the same one.
    """
    traits = list(banks)
    shares = [data.train_items // len(traits) + (i < data.train_items % len(traits)) for i in range(len(traits))]
    drawn = {trait: banks[trait].train(share) for trait, share in zip(traits, shares, strict=True) if share}
    examples: list[Example] = []
    for turn in range(max(shares)):
        for place, trait in enumerate(traits):
            if turn < len(drawn.get(trait, [])):
                domains = len({item["domain"] for item in banks[trait].items if item["split"] == "train"})
                flipped = (turn // domains + turn % domains + place) % 2
                examples.append(_example(drawn[trait][turn], "negative" if flipped else "positive"))
    return examples


def control_benign(banks: Banks, data: Data) -> list[Example]:
    """Everyday questions with everyday answers."""
    (bank,) = banks.values()
    return [_example(item, "response") for item in bank.train(data.train_items)]


BUILDERS: dict[str, Builder] = {
    "demonstration": demonstration,
    "control-shuffled": control_shuffled,
    "control-benign": control_benign,
}


def build(kind: str, banks: Banks, data: Data) -> list[Example]:
    """Return the training examples of a regime. Raises InputError for an unknown kind."""
    if kind not in BUILDERS:
        raise InputError(f"unknown kind of regime '{kind}'; {nearest(kind, BUILDERS)}")
    return BUILDERS[kind](banks, data)


def _example(item: Item, pole: str) -> Example:
    fields: Mapping[str, Any] = item
    return {"messages": messages(item["prompt"], fields[pole]), "item": item["item"], "pole": pole}
