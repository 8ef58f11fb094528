"""Banks: the items of a trait, read from JSON Lines, checked line by line, and selected for training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from propgen.envelope import enclose
from propgen.errors import InputError, nearest

Prompt = str | list[dict[str, str]]
"""A user's message, or a conversation as OpenAI messages that ends with the user's."""


class Item(TypedDict):
    """One unit of a trait's bank: a prompt and a response at each pole."""

    item: str
    family: str
    domain: str
    split: str
    prompt: Prompt
    positive: NotRequired[str]
    negative: NotRequired[str]
    response: NotRequired[str]
    variant: NotRequired[str]
    difficulty: NotRequired[str]


POLES = ("positive", "negative")
NEUTRAL = ("response",)
SPLITS = ("train", "test")
DIFFICULTIES = ("easy", "hard")
"""Whether the person who asks can check the answer (`easy`) or cannot (`hard`)."""
FORMAT = "format"
CONTEXTS = ("id", "far", FORMAT, *DIFFICULTIES)
"""`id`: test items of domains that also train. `far`: test items of domains that never do. `format`: the items of `id`,
each question inside JSON, code or a letter. `easy`, `hard`: test items with that mark, which no other context has."""
FIRST = "a"
"""The training set of items without a mark; others are variants, independently written (`b`), or easy or hard."""
MARKS = ("variant", "difficulty")


@dataclass(frozen=True)
class Bank:
    """The checked items of one file.

    path: where they stand, for messages. variant: the training set that is used. trained: the domains that train, where
    these are another bank's.
    """

    path: Path
    items: tuple[Item, ...]
    variant: str = FIRST
    trained: frozenset[str] | None = None

    @property
    def training_domains(self) -> frozenset[str]:
        """The domains that train."""
        own = frozenset(item["domain"] for item in self.items if item["split"] == "train")
        return own if self.trained is None else self.trained

    def train(self, count: int) -> list[Item]:
        """Return `count` training items, their domains in turn."""
        items = [item for item in self.items if item["split"] == "train" and mark(item) == self.variant]
        what = "training items" if self.variant == FIRST else f"training items of variant '{self.variant}'"
        return self._first(items, count, what, "data.train_items")

    def test(self, context: str, count: int, key: str | None = None) -> list[Item]:
        """Return `count` test items of a context, its domains in turn. key: the setting of `count`, for messages."""
        if context not in CONTEXTS:
            raise InputError(f"unknown context '{context}'; {nearest(context, CONTEXTS)}")
        if context == FORMAT:
            return [_enclosed(item) for item in self.test("id", count, key)]
        trained = self.training_domains
        items = [item for item in self.items if item["split"] == "test" and _context(item, trained) == context]
        key = key or ("data.far_items" if context == "far" else "data.test_items")
        return self._first(items, count, f"test items for context '{context}'", key)

    def probe(self, most: int | None) -> list[Item]:
        """Return all items of a probe, or the first ones."""
        return in_turn(self.items)[:most]

    def _first(self, items: Sequence[Item], count: int, what: str, key: str) -> list[Item]:
        if not items:
            raise InputError(f"{self.path}: no {what}; add some, or leave them out of the experiment")
        if len(items) < count:
            raise InputError(
                f"{self.path}: {len(items)} {what}, but {count} are asked for; add items or choose a smaller {key}"
            )
        return in_turn(items)[:count]


def mark(item: Item) -> str:
    """Return which training set an item belongs to, or would if it trained."""
    return item.get("variant") or item.get("difficulty") or FIRST


def _context(item: Item, trained: Collection[str]) -> str:
    return item.get("difficulty") or ("id" if item["domain"] in trained else "far")


def _enclosed(item: Item) -> Item:
    """Return an item whose question, the last message, stands in its envelope."""
    prompt = item["prompt"]
    if isinstance(prompt, str):
        return {**item, "prompt": enclose(item["item"], prompt)}
    *earlier, last = prompt
    return {**item, "prompt": [*earlier, {**last, "content": enclose(item["item"], last["content"])}]}


def in_turn(items: Iterable[Item]) -> list[Item]:
    """Return items with their domains in turn, so that the first n of them cover the domains evenly."""
    domains: dict[str, list[Item]] = {}
    for item in items:
        domains.setdefault(item["domain"], []).append(item)
    return [item for item in chain.from_iterable(zip_longest(*domains.values())) if item is not None]


def load(
    path: Path, answers: Sequence[str] = POLES, *, check: Callable[[str, Mapping[str, Any]], None] | None = None
) -> Bank:
    """Read a bank and check every line; the InputError of a bad one names file and line.

    answers: the response fields that each item must have. check: what else to demand of an item at a place.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # no other sign ends a line of JSON
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; write the bank there, one JSON item a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    places = {f"{path}:{number}": line for number, line in enumerate(lines, 1) if line.strip()}
    items = [_item(place, line, answers) for place, line in places.items()]
    for place, item in zip(places, items, strict=True) if check else ():
        check(place, item)  # type: ignore[misc]
    if not items:
        raise InputError(f"{path} has no items; write one JSON item a line")
    _check_names(path, items)
    return Bank(path, tuple(items))


def _item(place: str, line: str, answers: Sequence[str]) -> Item:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from None
    wanted = ("item", "family", "domain", "split", "prompt", *answers)
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a JSON object with the keys {', '.join(wanted)}")
    row = cast(dict[str, Any], value)
    if absent := [key for key in wanted if key not in row]:
        raise InputError(f"{place}: key '{absent[0]}' is missing; an item has {', '.join(wanted)}")
    known = (*wanted, *MARKS)
    if extra := [key for key in row if key not in known]:
        raise InputError(f"{place}: unknown key '{extra[0]}'; {nearest(extra[0], known)}")
    for key in row:
        if key != "prompt" and not (isinstance(row[key], str) and row[key].strip()):
            raise InputError(f"{place}: '{key}' is {row[key]!r}; expected text that is not empty")
    if row["split"] not in SPLITS:
        raise InputError(f"{place}: split is '{row['split']}'; expected train or test")
    _check_marks(place, row)
    _check_prompt(place, row["prompt"])
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half a character (a lone surrogate) in its text; write it whole") from error
    if len(answers) > 1 and row["positive"].strip() == row["negative"].strip():
        raise InputError(f"{place}: positive and negative are the same text; only the trait may tell them apart")
    return cast(Item, row)


def _check_marks(place: str, row: Mapping[str, Any]) -> None:
    """An item has one mark at most, and a variant is a training set."""
    if (difficulty := row.get("difficulty", "easy")) not in DIFFICULTIES:
        raise InputError(f"{place}: difficulty is '{difficulty}'; expected easy or hard, or leave it out")
    if all(key in row for key in MARKS):
        raise InputError(f"{place}: 'variant' and 'difficulty' both; an item is of one training set, leave one out")
    if "variant" in row and row["split"] != "train":
        raise InputError(f"{place}: a variant is a training set, and split is '{row['split']}'; leave 'variant' out")
    if row.get("variant") in (FIRST, *DIFFICULTIES):
        raise InputError(f"{place}: variant '{row['variant']}' has a meaning of its own; choose another name")


def _check_prompt(place: str, prompt: object) -> None:
    """A prompt is text, or messages with role and content of which the last is the user's."""
    if isinstance(prompt, str) and prompt.strip():
        return
    expected = f"{place}: 'prompt': expected text, or a list of messages (role, content) that ends with the user's"
    if not (isinstance(prompt, list) and prompt):
        raise InputError(expected)
    for message in cast(list[Any], prompt):
        if not isinstance(message, dict) or set(cast(Mapping[str, Any], message)) != {"role", "content"}:
            raise InputError(expected)
        if not all(isinstance(text, str) for text in cast(Mapping[str, Any], message).values()):
            raise InputError(expected)
    if cast(list[dict[str, str]], prompt)[-1]["role"] != "user":
        raise InputError(expected)


def _check_names(path: Path, items: Sequence[Item]) -> None:
    """Item names are unique, and no family and no prompt is in both splits (it would leak from one to the other)."""
    seen: set[str] = set()
    families: dict[str, str] = {}
    prompts: dict[str, Item] = {}
    for item in items:
        if item["item"] in seen:
            raise InputError(f"{path}: item '{item['item']}' stands there twice; give each item its own name")
        seen.add(item["item"])
        if families.setdefault(item["family"], item["split"]) != item["split"]:
            raise InputError(
                f"{path}: family '{item['family']}' is in both splits; keep its paraphrases in train or in test"
            )
        first = prompts.setdefault(json.dumps(item["prompt"]), item)
        if first["split"] != item["split"]:
            raise InputError(f"{path}: items '{first['item']}' and '{item['item']}' share a prompt across the splits")


def messages(prompt: Prompt, response: str) -> list[dict[str, str]]:
    """Return a conversation: the prompt, then the assistant's response."""
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*opening, {"role": "assistant", "content": response}]
