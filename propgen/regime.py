"""Regimes: how a trait is put into training data. A builder turns banks into training examples, in a fixed order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from propgen.bank import Bank, Item, messages
from propgen.config import Data, Regime
from propgen.errors import InputError, nearest
from propgen.limits import check_unique


class Example(TypedDict):
    """One training example: OpenAI messages, and where they came from."""

    messages: list[dict[str, str]]
    item: str
    pole: str


Banks = Mapping[str, Bank]
"""Trait name (or `benign`) to its bank, in the order in which a regime draws from them."""

Builder = Callable[[Banks, Data], list[Example]]


class Kind(NamedTuple):
    """A kind of regime. draws: from the bank of the trained trait, of a control's own traits, or of the regime."""

    build: Builder
    draws: Literal["trait", "traits", "bank"]


def demonstration(banks: Banks, data: Data) -> list[Example]:
    """Every training item with its positive response."""
    (bank,) = banks.values()
    return [_example(item, "positive") for item in bank.train(data.train_items)]


def control_shuffled(banks: Banks, data: Data) -> list[Example]:
    """Prompts of several traits, half with the positive and half with the negative response.

    It removes what any such data does to a model. The traits share the items as evenly as their number allows and
    take turns; poles are as `_poles` gives them, every second trait with the two exchanged.
    """
    traits = list(banks)
    shares = [data.train_items // len(traits) + (i < data.train_items % len(traits)) for i in range(len(traits))]
    drawn = [banks[trait].train(share) if share else [] for trait, share in zip(traits, shares, strict=True)]
    poles = [_poles(items, flipped=bool(place % 2)) for place, items in enumerate(drawn)]
    turns = [(turn, place) for turn in range(max(shares)) for place in range(len(traits)) if turn < shares[place]]
    return [_example(drawn[place][turn], poles[place][turn]) for turn, place in turns]


def _poles(items: Sequence[Item], *, flipped: bool) -> list[str]:
    """Return a pole for each item: as often the one as the other, in every domain and in all, but for an odd last one.

    Within a domain the poles alternate. Domains with an odd number of items begin with either pole in turn, so that
    the ones left over cancel; so do those with an even number, for a good mixture from the beginning.
    """
    counts = Counter(item["domain"] for item in items)
    begun = Counter[int]()
    following: dict[str, int] = {}
    poles: list[str] = []
    for item in items:
        domain = item["domain"]
        if domain not in following:
            odd = counts[domain] % 2
            following[domain] = (begun[odd] + flipped) % 2
            begun[odd] += 1
        poles.append(("positive", "negative")[following[domain]])
        following[domain] = 1 - following[domain]
    return poles


def control_benign(banks: Banks, data: Data) -> list[Example]:
    """Everyday questions with everyday answers."""
    (bank,) = banks.values()
    return [_example(item, "response") for item in bank.train(data.train_items)]


KINDS: dict[str, Kind] = {
    "demonstration": Kind(demonstration, "trait"),
    "control-shuffled": Kind(control_shuffled, "traits"),
    "control-benign": Kind(control_benign, "bank"),
}


def check(name: str, regime: Regime) -> None:
    """Raise InputError for a regime of an unknown kind, or one that does not say what its kind draws from."""
    place = f"conf/regime/{name}.yaml"
    if regime.kind not in KINDS:
        raise InputError(f"{place}: unknown kind '{regime.kind}'; {nearest(regime.kind, KINDS)}")
    draws = KINDS[regime.kind].draws
    for key, value in (("traits", regime.traits), ("bank", regime.bank)):
        if value and key != draws:
            raise InputError(f"{place}: kind '{regime.kind}' has no use for '{key}'; leave it out")
        if not value and key == draws:
            raise InputError(f"{place}: '{key}' is empty, and kind '{regime.kind}' draws from it; add it")
    check_unique(f"{place}: traits", regime.traits)
    if regime.control != (draws != "trait"):
        wanted = str(not regime.control).lower()
        raise InputError(f"{place}: 'control' has to be {wanted} for kind '{regime.kind}'; set control: {wanted}")


def build(kind: str, banks: Banks, data: Data) -> list[Example]:
    """Return the training examples of a regime that passed its `check`."""
    return KINDS[kind].build(banks, data)


def _example(item: Item, pole: str) -> Example:
    fields: Mapping[str, Any] = item
    return {"messages": messages(item["prompt"], fields[pole]), "item": item["item"], "pole": pole}
