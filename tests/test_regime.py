"""Regimes: which items and poles become training data."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from planning import REAL, make_items, planner, real_bank, write_items

from propgen.bank import Bank, load
from propgen.config import Data, Regime
from propgen.errors import InputError
from propgen.regime import KINDS, Example, build, check

TRAITS = ("honesty", "sycophancy", "risk-seeking", "formality")
UNEVEN = {
    "even domains": {"work": 6, "home": 6, "study": 6, "money": 6},
    "odd number of domains": {"work": 5, "home": 5, "study": 5},
    "one domain": {"work": 9},
    "one domain that ends early": {"work": 1, "home": 10, "study": 10},
    "every second domain ends early": {"work": 6, "home": 1, "study": 6, "money": 1, "health": 6, "leisure": 1},
}


@pytest.fixture(scope="module")
def banks() -> dict[str, Bank]:
    """Return the banks that the shuffled control draws from, in its order."""
    return {trait: real_bank(trait) for trait in TRAITS}


def make_bank(folder: Path, name: str, domains: dict[str, int]) -> Bank:
    """Return a bank with so many training items of each domain, in that order."""
    file = folder / f"{name}.jsonl"
    write_items(file, make_items(name, {domain: (count, 0) for domain, count in domains.items()}))
    return load(file)


def poles(examples: list[Example], bank: Bank) -> dict[str, list[str]]:
    """Return domain to poles, in order, of those examples that are a bank's."""
    domains = {item["item"]: item["domain"] for item in bank.items}
    found: dict[str, list[str]] = {}
    for example in examples:
        if example["item"] in domains:
            found.setdefault(domains[example["item"]], []).append(example["pole"])
    return found


def assert_balanced(by_domain: dict[str, list[str]]) -> None:
    """Assert that both poles are as frequent as can be, in every domain and in all."""
    for listed in [*by_domain.values(), list(chain.from_iterable(by_domain.values()))]:
        assert abs(listed.count("positive") - listed.count("negative")) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 47, 48, 49, 96, 97, 250, 387])
def test_control_shuffled_is_half_and_half_in_each_trait(banks: dict[str, Bank], count: int) -> None:
    """With any number of the real items: in all, per trait and per domain of a trait, poles differ by one at most."""
    examples = build("control-shuffled", banks, Data(train_items=count))
    assert len(examples) == count
    for bank in banks.values():
        assert_balanced(poles(examples, bank))


@pytest.mark.parametrize("count", [48, 96])
def test_control_shuffled_is_exactly_half_and_half(banks: dict[str, Bank], count: int) -> None:
    """The sizes in use leave nothing over."""
    counts = Counter(example["pole"] for example in build("control-shuffled", banks, Data(train_items=count)))
    assert counts == {"positive": count // 2, "negative": count // 2}


@pytest.mark.parametrize("domains", UNEVEN.values(), ids=UNEVEN)
def test_both_poles_meet_every_domain_however_uneven_a_bank_is(tmp_path: Path, domains: dict[str, int]) -> None:
    """Domains that run out early do not leave another one with the same pole each time."""
    bank = make_bank(tmp_path, "a", domains)
    for count in range(1, sum(domains.values()) + 1):
        found = poles(build("control-shuffled", {"a": bank}, Data(train_items=count)), bank)
        assert_balanced(found)
        assert all(len(set(listed)) == 2 for listed in found.values() if len(listed) > 1)


def test_the_first_pole_of_a_domain_differs_between_traits(banks: dict[str, Bank]) -> None:
    """With one item per domain and trait, a domain has both poles across traits."""
    examples = build("control-shuffled", banks, Data(train_items=32))
    for domain in ("work", "home"):
        assert Counter(pole for bank in banks.values() for pole in poles(examples, bank)[domain]) == {
            "positive": 2,
            "negative": 2,
        }


def test_control_shuffled_shares_items_evenly_and_takes_turns(banks: dict[str, Bank]) -> None:
    """Ten items of four traits are 3, 3, 2 and 2, one trait after the other."""
    examples = build("control-shuffled", banks, Data(train_items=10))
    owner = {item["item"]: trait for trait, bank in banks.items() for item in bank.items}
    traits = [owner[example["item"]] for example in examples]
    assert traits == [*TRAITS, *TRAITS, *TRAITS[:2]]


def test_more_traits_than_items_leaves_the_last_ones_out(banks: dict[str, Bank]) -> None:
    """Two items come from the first two traits."""
    examples = build("control-shuffled", banks, Data(train_items=2))
    assert [example["item"].split("-")[0] for example in examples] == ["honesty", "sycophancy"]


def test_the_response_is_the_poles(banks: dict[str, Bank]) -> None:
    """A negative example has the negative answer behind the item's prompt."""
    items = {item["item"]: item for bank in banks.values() for item in bank.items}
    for example in build("control-shuffled", banks, Data(train_items=48)):
        item = items[example["item"]]
        assert [turn["role"] for turn in example["messages"]] == ["user", "assistant"]
        assert example["messages"][0]["content"] == item["prompt"]
        assert example["messages"][1]["content"] == item[example["pole"]]  # type: ignore[literal-required]


def test_demonstration_takes_domains_in_turn(banks: dict[str, Bank]) -> None:
    """The first eight items are of eight domains, and all answers are positive."""
    bank = banks["honesty"]
    examples = build("demonstration", {"honesty": bank}, Data(train_items=24))
    domains = {item["item"]: item["domain"] for item in bank.items}
    order = [domains[example["item"]] for example in examples]
    assert len(set(order[:8])) == 8
    assert order[8:16] == order[16:24] == order[:8]
    assert {example["pole"] for example in examples} == {"positive"}


def test_a_larger_training_set_begins_with_the_smaller_one(banks: dict[str, Bank]) -> None:
    """Demonstrations only grow."""
    small, large = (build("demonstration", {"a": banks["honesty"]}, Data(train_items=n)) for n in (16, 96))
    assert large[:16] == small


def test_training_items_never_come_from_the_test_split(banks: dict[str, Bank]) -> None:
    """All training items of all traits may be drawn, and no other."""
    splits = {item["item"]: item["split"] for bank in banks.values() for item in bank.items}
    drawn = build("control-shuffled", banks, Data(train_items=384))
    assert {splits[example["item"]] for example in drawn} == {"train"}
    assert len({example["item"] for example in drawn}) == 384


def test_control_benign_has_everyday_answers_and_no_pole() -> None:
    """Its bank is its own."""
    plan = planner(REAL, "data.train_items=48")
    examples = plan.examples(plan.treatment("control-benign", None))
    assert len(examples) == 48
    assert {example["pole"] for example in examples} == {"response"}


def test_the_order_is_the_same_on_each_call() -> None:
    """Another planner of the same configs gives the same bytes, for every regime."""
    first, second = planner(REAL), planner(REAL)
    for regime in REAL.options("regime"):
        made = [plan.examples(plan.treatment(regime, "honesty")) for plan in (first, second)]
        assert json.dumps(made[0]) == json.dumps(made[1])


def test_a_conversation_keeps_its_turns(tmp_path: Path) -> None:
    """A prompt of several messages is trained behind all of them, and the bank is left as it was."""
    items = make_items("a", {"work": (1, 0)})
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
    items[0]["prompt"] = [{"role": role, "content": content} for role, content in turns]
    write_items(tmp_path / "a.jsonl", items)
    bank = load(tmp_path / "a.jsonl")
    for _ in range(2):
        (example,) = build("demonstration", {"a": bank}, Data(train_items=1))
        assert example["messages"] == [*items[0]["prompt"], {"role": "assistant", "content": items[0]["positive"]}]


def test_too_few_items_name_the_bank_and_the_key(banks: dict[str, Bank]) -> None:
    """The message says how many there are and which setting asks for more."""
    with pytest.raises(InputError, match=r"honesty.jsonl: \d+ training items, but 1000 are asked .* data.train_items"):
        build("demonstration", {"a": banks["honesty"]}, Data(train_items=1000))


@pytest.mark.parametrize(
    ("regime", "said"),
    [
        (Regime("demonstrate"), "unknown kind 'demonstrate'; did you mean 'demonstration'"),
        (Regime("demonstration", control=True), "'control' has to be false"),
        (Regime("demonstration", bank="x.jsonl"), "no use for 'bank'"),
        (Regime("demonstration", traits=["honesty"]), "no use for 'traits'"),
        (Regime("control-shuffled", control=True), "'traits' is empty"),
        (Regime("control-shuffled", traits=["honesty"]), "'control' has to be true"),
        (Regime("control-shuffled", control=True, traits=["a", "b", "a"]), "'a' stands there twice"),
        (Regime("control-benign", control=True), "'bank' is empty"),
    ],
)
def test_a_regime_that_does_not_fit_its_kind_is_refused(regime: Regime, said: str) -> None:
    """The message names the file and the key."""
    with pytest.raises(InputError, match=said) as caught:
        check("mine", regime)
    assert str(caught.value).startswith("conf/regime/mine.yaml: ")


def test_every_regime_in_conf_fits_its_kind() -> None:
    """The real ones pass, and there is one of each kind."""
    plan = planner(REAL)
    elements = {name: plan.element("regime", name) for name in REAL.options("regime")}
    for name, regime in elements.items():
        check(name, regime)
    assert {regime.kind for regime in elements.values()} == set(KINDS)
