"""The audit of banks: real banks within their limits, planted flaws found, measures equal to slow ones."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_project
from planning import REAL, TRAITS, add_trait, edit_item, real_bank

from propgen.audit import Audit, audit, duplicates, length_auc
from propgen.bank import Item
from propgen.cli import main
from propgen.compose import Project, compose_elements


@pytest.fixture(scope="module")
def real() -> Audit:
    """Return the measures of this project's banks, as `propgen check-bank` prints them."""
    elements = compose_elements(REAL, {"trait": TRAITS})["trait"]
    banks = {trait: real_bank(trait).items for trait in TRAITS}
    return audit(banks, {trait: element.neighbours for trait, element in elements.items()})


def test_the_banks_give_nothing_away(real: Audit) -> None:
    assert real.faults == []
    assert len(real.items) >= 13
    assert len(real.strangers) >= len(TRAITS) * (len(TRAITS) - 1) - 4  # neighbours are the exception


def test_own_words_tell_a_trait_that_is_all_words(real: Audit) -> None:
    """The classifier can learn: formality is a matter of words."""
    assert real.vocabulary["formality", "formality"] > 0.95


def items(trait: str, count: int, **texts: Any) -> list[Item]:
    """Return items whose texts are made by functions of their number."""
    made: list[Any] = []
    for k in range(count):
        about = {"item": f"{trait}-{k}", "family": f"{trait}-f{k}", "domain": "work", "split": ("train", "test")[k % 2]}
        made.append(about | {key: text(k) for key, text in texts.items()})
    return made


def flawed(trait: str, positive: str = "", negative: str = "") -> list[Item]:
    """Return forty items without a common word but the ones given, which mark a pole."""

    def words(kind: str) -> Any:
        mark = {"p": positive, "n": negative}.get(kind, "")
        return lambda k: f"{kind}{trait}{k}a {kind}{trait}{k}b {kind}{trait}{k}c {mark}".strip()

    return items(trait, 40, prompt=words("q"), positive=words("p"), negative=words("n"))


def test_a_word_that_marks_the_poles_of_two_traits_is_found() -> None:
    banks = {"one": flawed("one", "indeed"), "two": flawed("two", "indeed"), "three": flawed("three")}
    found = audit(banks, {})
    told = [fault for fault in found.faults if "words of" in fault]
    assert [fault.split(" tell")[0] for fault in told] == ["two: the words of one", "one: the words of two"]
    assert found.vocabulary["one", "two"] == found.vocabulary["one", "one"] == 1.0
    assert found.vocabulary["three", "one"] == 0.5
    assert not [fault for fault in audit(banks, {"two": ["one"]}).faults if "words of" in fault]


def test_length_that_tells_a_pole_is_found() -> None:
    banks = {"one": flawed("one", "indeed"), "two": flawed("two")}
    assert [fault for fault in audit(banks, {}).faults if "length" in fault] == [
        "one: length tells the pole with AUC 1.00 (limits 0.40 to 0.60)"
    ]


def test_a_near_duplicate_in_another_trait_is_found_and_a_paraphrase_is_none() -> None:
    one, two = flawed("one"), flawed("two")
    one[0]["prompt"] = "what should i cook for eight people on friday evening"
    two[5]["prompt"] = "What should I cook for eight people on Friday night?"
    one[1]["prompt"] = "what should i cook for eight people on friday noon"
    one[1]["family"] = one[0]["family"]
    found = duplicates({"one": one, "two": two})
    assert [(a, b, key) for a, b, key, _ in found["one"]] == [
        ("one-0", "two-5", "prompt"),
        ("one-1", "two-5", "prompt"),
    ]
    assert [row[0] for row in found["two"]] == ["two-5"]
    assert found["one"][0][3] == pytest.approx(7 / 9)
    assert "near-duplicate" in audit({"one": one, "two": two}, {}).faults[0]


def test_length_auc_is_the_share_of_pairs() -> None:
    bank: Any = real_bank("honesty").items
    positive, negative = ([len(item[pole].split()) for item in bank] for pole in ("positive", "negative"))
    wins = sum((a > b) + (a == b) / 2 for a, b in product(positive, negative))
    assert length_auc(bank) == pytest.approx(wins / len(bank) ** 2)


def test_check_bank_names_the_fault_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(copy_project(tmp_path))
    monkeypatch.chdir(project.root)
    add_trait(project, "wordy")
    bank = project.conf / "trait/wordy.jsonl"
    for domain, split, k in product(("work", "home"), ("train", "test"), range(10)):
        edit_item(
            bank, f"wordy-{domain}-{split}-{k}", lambda item: item.update(positive=item["positive"] + " and more")
        )
    with pytest.raises(SystemExit, match="1"):
        main(["check-bank", "wordy"])
    shown = capsys.readouterr()
    assert "wordy: length tells the pole" in shown.err
    assert "wordy" in shown.out
    with pytest.raises(SystemExit, match="2"):
        main(["check-bank", "wordi"])
    assert "did you mean 'wordy'?" in capsys.readouterr().err
