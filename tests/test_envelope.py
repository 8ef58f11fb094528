"""Envelopes: the context `format` shows the same question inside JSON, code or a letter."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from planning import real_bank

from propgen.bank import Bank
from propgen.envelope import ENVELOPES, enclose, envelope

QUESTION = 'can i "reuse"\nthe <b>oil</b>? \\ naïve'


@pytest.mark.parametrize("name", ENVELOPES)
def test_the_question_stands_in_it_word_for_word(name: str) -> None:
    text = ENVELOPES[name](QUESTION)
    quoted = json.dumps(QUESTION, ensure_ascii=False)
    assert (
        text.count(quoted if name.startswith("json") or name in ("code-python", "code-javascript") else QUESTION) == 1
    )
    assert len(text) > len(QUESTION) + 10


@pytest.mark.parametrize("name", [name for name in ENVELOPES if name.startswith("json")])
def test_json_is_json(name: str) -> None:
    assert QUESTION in _leaves(json.loads(ENVELOPES[name](QUESTION)))


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def test_the_context_has_the_items_of_id_in_all_envelopes() -> None:
    bank = real_bank("honesty")
    plain, formatted = bank.test("id", 64), bank.test("format", 64)
    assert [item["item"] for item in plain] == [item["item"] for item in formatted]
    assert [item["positive"] for item in plain] == [item["positive"] for item in formatted]
    assert all(a["prompt"] != b["prompt"] for a, b in zip(plain, formatted, strict=True))
    kinds = Counter(envelope(item["item"]).partition("-")[0] for item in plain)
    assert set(kinds) == {"json", "code", "letter"}
    assert min(kinds.values()) >= 10


def test_an_items_envelope_depends_on_its_name_alone() -> None:
    bank = real_bank("honesty")
    fewer = Bank(bank.path, tuple(item for item in bank.items if item["domain"] != "work"))
    before = {item["item"]: item["prompt"] for item in bank.test("format", 64)}
    shared = [item for item in fewer.test("format", 40) if item["item"] in before]
    assert len(shared) > 20
    assert all(item["prompt"] == before[item["item"]] for item in shared)


def test_of_a_conversation_the_last_message_is_enclosed() -> None:
    item = real_bank("honesty").test("id", 1)[0]
    earlier = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    bank = real_bank("honesty")
    chat = {**item, "prompt": [*earlier, {"role": "user", "content": QUESTION}]}
    others = tuple(other for other in bank.items if other["split"] == "train")
    (found,) = Bank(bank.path, (*others, chat)).test("format", 1)  # type: ignore[arg-type]
    assert found["prompt"] == [*earlier, {"role": "user", "content": enclose(item["item"], QUESTION)}]
