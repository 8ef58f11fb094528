"""Banks: reading and checking a file, and the quality of the real ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import PROBES, REAL, TRAITS, make_items, real_bank, write_items

from propgen.bank import NEUTRAL, Bank, in_turn, load, messages
from propgen.config import Data
from propgen.dataset import read, write
from propgen.errors import InputError
from propgen.regime import build

ITEM = make_items("a", {"work": (1, 0)})[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a bank that is not there yet."""
    return tmp_path / "a.jsonl"


@pytest.fixture(scope="module")
def banks() -> dict[str, Bank]:
    """Return every trait's bank."""
    return {trait: real_bank(trait) for trait in TRAITS}


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"item": "a",', "a.jsonl:2: not valid JSON"),
        ("[1, 2]", "a.jsonl:2: expected a JSON object"),
        (json.dumps({key: value for key, value in ITEM.items() if key != "domain"}), "a.jsonl:2: key 'domain' is mis"),
        (json.dumps({**ITEM, "positiv": "x"}), "a.jsonl:2: unknown key 'positiv'; did you mean 'positive'"),
        (json.dumps({**ITEM, "split": "dev"}), "a.jsonl:2: split is 'dev'; expected train or test"),
        (json.dumps({**ITEM, "difficulty": "medium"}), "a.jsonl:2: difficulty is 'medium'; expected easy or hard"),
        (json.dumps({**ITEM, "difficulty": "easy", "variant": "b"}), "a.jsonl:2: 'variant' and 'difficulty' both"),
        (json.dumps({**ITEM, "split": "test", "variant": "b"}), "a.jsonl:2: a variant is a training set"),
        (json.dumps({**ITEM, "variant": "hard"}), "a.jsonl:2: variant 'hard' has a meaning of its own"),
        (json.dumps({**ITEM, "variant": ""}), "a.jsonl:2: 'variant' is ''"),
        (json.dumps({**ITEM, "positive": " "}), "a.jsonl:2: 'positive' is ' '"),
        (json.dumps({**ITEM, "item": 7}), "a.jsonl:2: 'item' is 7"),
        (json.dumps({**ITEM, "negative": ITEM["positive"] + " "}), "a.jsonl:2: positive and negative are the same"),
        (json.dumps({**ITEM, "positive": "\ud83d"}), "a.jsonl:2: half a character"),
        (json.dumps({**ITEM, "prompt": ""}), "a.jsonl:2: 'prompt'"),
        (json.dumps({**ITEM, "prompt": []}), "a.jsonl:2: 'prompt'"),
        (json.dumps({**ITEM, "prompt": [{"role": "assistant", "content": "x"}]}), "a.jsonl:2: 'prompt'"),
        (json.dumps({**ITEM, "prompt": [{"role": "user"}]}), "a.jsonl:2: 'prompt'"),
        (json.dumps({**ITEM, "prompt": [{"role": "user", "content": 3}]}), "a.jsonl:2: 'prompt'"),
        (json.dumps(ITEM), "a.jsonl: item 'a-work-train-0' stands there twice"),
        (json.dumps({**ITEM, "item": "b", "split": "test"}), "a.jsonl: family 'a-work-train-0' is in both splits"),
    ],
)
def test_a_bad_line_is_named(file: Path, line: str, said: str) -> None:
    """The message says file, line and key."""
    file.write_text(f"{json.dumps(ITEM)}\n{line}\n")
    with pytest.raises(InputError, match=re.escape(said)):
        load(file)


def test_a_bank_that_is_not_there_empty_or_no_text(file: Path) -> None:
    """Each is said in a sentence with the path."""
    with pytest.raises(InputError, match=r"a\.jsonl does not exist"):
        load(file)
    file.write_text("\n \n")
    with pytest.raises(InputError, match=r"a\.jsonl has no items"):
        load(file)
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        load(file)


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_fine(file: Path) -> None:
    """Editors leave them."""
    lines = [json.dumps(item) for item in make_items("a", {"work": (2, 1)})]
    file.write_bytes("\r\n".join(["\ufeff" + lines[0], "", *lines[1:]]).encode())
    assert len(load(file).items) == 3


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_signs_that_python_takes_for_line_ends_are_text(file: Path, tmp_path: Path, sign: str) -> None:
    """JSON allows them inside a string; an item keeps them, and so does a dataset."""
    item = {**ITEM, "positive": f"one{sign}two"}
    file.write_text(json.dumps(item, ensure_ascii=False) + "\n", encoding="utf-8")
    bank = load(file)
    assert bank.items[0]["positive"] == item["positive"]  # type: ignore[typeddict-item]
    examples = build("demonstration", {"a": bank}, Data(train_items=1))
    write(tmp_path, "a", examples)
    assert list(read(tmp_path)["messages"]) == [examples[0]["messages"]]


def test_domains_come_in_turn(file: Path) -> None:
    """One item of each domain, then the second of each, as long as there are any."""
    write_items(file, make_items("a", {"work": (3, 0), "home": (1, 0), "study": (2, 0)}))
    order = [item["domain"] for item in in_turn(load(file).items)]
    assert order == ["work", "home", "study", "work", "study", "work"]


def test_id_items_are_of_domains_that_train_and_far_items_of_others(file: Path) -> None:
    """A domain belongs to one context only."""
    write_items(file, make_items("a", {"work": (2, 2), "travel": (0, 3), "home": (1, 1)}))
    bank = load(file)
    assert {item["domain"] for item in bank.test("id", 3)} == {"work", "home"}
    assert {item["domain"] for item in bank.test("far", 3)} == {"travel"}
    with pytest.raises(InputError, match=r"4 are asked for; .*data\.far_items"):
        bank.test("far", 4)


def test_marked_items_are_a_training_set_and_a_context_of_their_own(file: Path) -> None:
    """Neither the first training set nor the context `id` has any of them."""
    items = make_items("a", {"work": (4, 3)})
    items[1]["variant"] = "b"
    items[2]["difficulty"] = items[6]["difficulty"] = "hard"
    write_items(file, items)
    bank = load(file)
    assert [item["item"] for item in bank.train(2)] == ["a-work-train-0", "a-work-train-3"]
    assert [item["item"] for item in replace(bank, variant="b").train(1)] == ["a-work-train-1"]
    assert [item["item"] for item in replace(bank, variant="hard").train(1)] == ["a-work-train-2"]
    assert [item["item"] for item in bank.test("id", 2)] == ["a-work-test-0", "a-work-test-1"]
    assert [item["item"] for item in bank.test("hard", 1)] == ["a-work-test-2"]
    with pytest.raises(InputError, match="no test items for context 'easy'"):
        bank.test("easy", 1)
    with pytest.raises(InputError, match=r"1 training items of variant 'b', but 2 are asked for"):
        replace(bank, variant="b").train(2)


def test_a_context_without_items_says_so(file: Path) -> None:
    """No far domain, no far items."""
    write_items(file, make_items("a", {"work": (1, 1)}))
    with pytest.raises(InputError, match="no test items for context 'far'"):
        load(file).test("far", 1)


def test_messages_end_with_the_assistant() -> None:
    """Text becomes a user's turn; a conversation is kept and not changed."""
    assert messages("hi", "ho") == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    turns = [{"role": "user", "content": "hi"}]
    assert messages(turns, "ho")[:-1] == turns
    assert len(turns) == 1


# -- the real banks ------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Return a text's words in lower case."""
    return re.findall(r"[a-z']+", text.lower())


@pytest.mark.parametrize("trait", TRAITS)
def test_a_bank_has_enough_items(banks: dict[str, Bank], trait: str) -> None:
    """At least 96 training items, 64 of the same and 24 of two other domains to test, eight domains that train."""
    items = banks[trait].items
    train = Counter(item["domain"] for item in items if item["split"] == "train")
    test = Counter(item["domain"] for item in items if item["split"] == "test")
    far = {domain: count for domain, count in test.items() if domain not in train}
    assert train.total() >= 96
    assert len(train) >= 8
    assert test.total() - sum(far.values()) >= 64
    assert (len(far), sum(far.values()) >= 24) == (2, True)


@pytest.mark.parametrize("trait", TRAITS)
def test_every_training_domain_is_tested(banks: dict[str, Bank], trait: str) -> None:
    """What an `id` evaluation covers is what was trained."""
    items = banks[trait].items
    assert {i["domain"] for i in items if i["split"] == "train"} <= {i["domain"] for i in items if i["split"] == "test"}


def test_the_traits_train_and_test_in_the_same_domains(banks: dict[str, Bank]) -> None:
    """Otherwise a cross effect would mix a change of trait with a change of domain."""
    found = {
        tuple(sorted({(item["split"], item["domain"]) for item in bank.items if item["split"] == split}))
        for bank in banks.values()
        for split in ("train", "test")
    }
    assert len(found) == 2


def test_there_are_enough_benign_items() -> None:
    """As many as the largest training set of a trait needs, from eight domains."""
    bank = load(REAL.conf / "regime/control-benign.jsonl", NEUTRAL)
    assert sum(item["split"] == "train" for item in bank.items) >= 96
    assert len({item["domain"] for item in bank.items}) >= 8


@pytest.mark.parametrize("trait", TRAITS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_length_does_not_tell_the_poles_apart(banks: dict[str, Bank], trait: str, split: str) -> None:
    """Area under the curve of words, positive against negative, is between .40 and .60 in either split."""
    items: Any = [item for item in banks[trait].items if item["split"] == split]
    positive, negative = ([len(item[pole].split()) for item in items] for pole in ("positive", "negative"))
    wins = sum((a > b) + (a == b) / 2 for a in positive for b in negative)
    assert 0.40 <= wins / (len(positive) * len(negative)) <= 0.60


@pytest.mark.parametrize("trait", TRAITS)
def test_no_family_is_in_both_splits(banks: dict[str, Bank], trait: str) -> None:
    """Paraphrases of a training item would make a test item easy."""
    splits: dict[str, set[str]] = {}
    for item in banks[trait].items:
        splits.setdefault(item["family"], set()).add(item["split"])
    assert {len(found) for found in splits.values()} == {1}


def test_no_text_stands_in_two_places(banks: dict[str, Bank]) -> None:
    """Prompts and answers are unique within and across traits, the benign ones included."""
    benign = load(REAL.conf / "regime/control-benign.jsonl", NEUTRAL).items
    items: Any = [item for bank in banks.values() for item in bank.items]
    texts = [" ".join(words(item[key])) for item in items for key in ("prompt", "positive", "negative")]
    texts += [" ".join(words(item[key])) for item in benign for key in ("prompt", "response")]  # type: ignore[literal-required]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


@pytest.mark.parametrize("others", [("control-benign", "voice-almanac"), *((probe,) for probe in PROBES)])
def test_names_of_items_are_unique(banks: dict[str, Bank], others: tuple[str, ...]) -> None:
    """A treatment's dataset identifies an item by its name; so does the table of items beside its trait."""
    more = [real_bank(name) if name in PROBES else load(REAL.conf / f"regime/{name}.jsonl", NEUTRAL) for name in others]
    names = [item["item"] for bank in [*banks.values(), *more] for item in bank.items]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_asks_nothing_twice_and_is_never_trained(banks: dict[str, Bank], probe: str) -> None:
    """Each prompt stands there once, has its own answer, and belongs to the test split; no bank has it."""
    items: Any = real_bank(probe).items
    assert len({item["prompt"] for item in items}) == len(items) >= 64
    assert {item["split"] for item in items} == {"test"}
    assert all(item["positive"] != item["negative"] for item in items)
    benign = load(REAL.conf / "regime/control-benign.jsonl", NEUTRAL)
    asked = {str(item["prompt"]).lower() for bank in [*banks.values(), benign] for item in bank.items}
    assert not asked & {str(item["prompt"]).lower() for item in items}
