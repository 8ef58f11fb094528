"""Evaluation: each cell is an object as soon as it is finished, and work is shared and never repeated."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from synthetic import RECORD, item_row, make_plan, make_view

from propgen.bank import Item
from propgen.config import Execution, Generation
from propgen.digest import Spec, cell_digest
from propgen.errors import PropgenError
from propgen.evaluation import Column, Scorer, evaluate
from propgen.plan import Cell, Plan, Responses
from propgen.store import CELL, RESPONSES, View
from propgen.tables import read_cell, read_responses


@dataclass
class FakeScorer:
    """Scores items by their number, and remembers what it was asked. fail: the trait at which it fails."""

    fail: str = ""
    asked: list[str] = field(default_factory=list)

    def score(self, kind: str, items: Sequence[Item]) -> list[dict[str, object]]:
        trait = items[0]["item"].split("-")[0]
        self.asked.append(trait)
        if trait == self.fail:
            raise RuntimeError(f"no memory for {trait}")
        rows = [item_row(kind, number, 0, float(number)) for number in range(len(items))]
        for row in rows:
            del row["context"]
        return rows


@pytest.fixture
def plan() -> Plan:
    return make_plan(("honesty",), ("honesty", "formality", "warmth", "wit"), views=[("contrast", "far")])


@pytest.fixture
def view(tmp_path: Path) -> View:
    return make_view(tmp_path)


def columns(plan: Plan) -> list[Column]:
    """Return all columns of the plan with items that are named after their trait."""
    return [
        Column(e, [_item(f"{e.trait}-{k}") for k in range(3)], [f"evaluated=[{e.trait}]"]) for e in plan.evaluations
    ]


def _item(name: str) -> Item:
    return {"item": name, "family": name, "domain": "work", "split": "test", "prompt": name}


def run(plan: Plan, view: View, scorer: FakeScorer) -> None:
    """Evaluate the plan's first finetune under everything."""
    evaluate(view, plan.subjects[1], columns(plan), scorer, RECORD)  # type: ignore[arg-type]


def cells(plan: Plan) -> list[Cell]:
    """Return the cells of the plan's first finetune."""
    return [Cell(plan.subjects[1], evaluation) for evaluation in plan.evaluations]


def test_cells_are_made_in_order_and_linked(plan: Plan, view: View) -> None:
    """Every column becomes a cell with its rows, its context, and what made it."""
    scorer = FakeScorer()
    run(plan, view, scorer)
    assert scorer.asked == ["honesty", "formality", "warmth", "wit"]
    for cell in cells(plan):
        assert view.shows(cell.path, cell.digest, cell=True)
        table = read_cell(view.root / cell.path, cell.digest)
        assert table.rows["score"].to_list() == [0, 1, 2]
        assert table.rows["context"].unique().to_list() == ["far"]
        assert table.about["execution"] == RECORD
        assert table.about["overrides"] == ["seed=0", f"evaluated=[{cell.evaluation.trait}]"]
        assert cell_digest(table.about["subject"], cell.evaluation.digest) == cell.digest
        assert table.about["evaluation"] == cell.evaluation.spec


def test_a_failure_in_the_third_cell_leaves_the_first_two(plan: Plan, view: View) -> None:
    """What was finished is an object, and the next run asks for the rest alone."""
    with pytest.raises(RuntimeError, match="warmth"):
        run(plan, view, FakeScorer(fail="warmth"))
    assert view.store.listing() == {cell.digest for cell in cells(plan)[:2]}
    again = FakeScorer()
    run(plan, view, again)
    assert again.asked == ["warmth", "wit"]
    assert all(view.shows(cell.path, cell.digest, cell=True) for cell in cells(plan))


def test_a_present_cell_is_linked_and_not_scored(plan: Plan, view: View) -> None:
    """A run over finished cells asks the scorer for nothing, and restores the links."""
    run(plan, view, FakeScorer())
    before = {cell.digest: view.store.payload(cell.digest, cell=True).stat() for cell in cells(plan)}
    (view.root / cells(plan)[2].path).unlink()
    scorer = FakeScorer()
    run(plan, view, scorer)
    assert scorer.asked == []
    assert view.shows(cells(plan)[2].path, cells(plan)[2].digest, cell=True)
    assert {digest: view.store.payload(digest, cell=True).stat() for digest in before} == before


def test_a_busy_cell_is_left_to_the_other_run_and_linked_at_the_end(plan: Plan, view: View) -> None:
    """While another run makes a cell the others are made; then its cell is waited for and linked."""
    busy = cells(plan)[1]
    other = view.store.lease(busy.digest)
    other.__enter__()

    class Slow(FakeScorer):
        def score(self, kind: str, items: Sequence[Item]) -> list[dict[str, object]]:
            assert not (view.root / busy.path).is_symlink()
            if len(self.asked) == 2:  # the last cell: now the other run gets done
                view.store.folder(busy.digest).mkdir(parents=True)
                view.store.payload(busy.digest, cell=True).write_text("the other's")
                other.__exit__(None, None, None)
            return super().score(kind, items)

    scorer = Slow()
    run(plan, view, scorer)
    assert scorer.asked == ["honesty", "warmth", "wit"]
    assert (view.root / busy.path).read_text() == "the other's"


def test_a_busy_cell_whose_maker_gives_up_is_made_after_all(plan: Plan, view: View) -> None:
    """If the other run fails, its cell is not lost."""
    busy = cells(plan)[0]
    other = view.store.lease(busy.digest)
    other.__enter__()

    class Slow(FakeScorer):
        def score(self, kind: str, items: Sequence[Item]) -> list[dict[str, object]]:
            if len(self.asked) == 2:
                other.__exit__(None, None, None)
            return super().score(kind, items)

    scorer = Slow()
    run(plan, view, scorer)
    assert scorer.asked == ["formality", "warmth", "wit", "honesty"]
    assert view.shows(busy.path, busy.digest, cell=True)


@pytest.mark.parametrize("adapter", [None, Path("adapter")])
def test_the_model_is_loaded_once_and_only_when_needed(
    plan: Plan, view: View, monkeypatch: pytest.MonkeyPatch, adapter: Path | None
) -> None:
    """Four cells load the model once, with the adapter if there is one; finished cells load nothing."""
    loads: list[tuple[Any, ...]] = []
    threads: list[int] = []

    def load(*arguments: Any) -> tuple[str, str]:
        loads.append(arguments)
        return "model", "tokenizer"

    def scorer(model: str, tokenizer: str, items: Sequence[Item], budget: int) -> list[dict[str, object]]:
        assert (model, tokenizer, budget) == ("model", "tokenizer", 99)
        return FakeScorer().score("contrast", items)

    fakes = {
        "torch": SimpleNamespace(set_num_threads=threads.append),
        "propgen.model": SimpleNamespace(load_frozen=load),
        "propgen.scoring": SimpleNamespace(SCORERS={"contrast": scorer}),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    execution = Execution(token_budget=99)
    for _ in range(2):
        evaluate(
            view, plan.subjects[1], columns(plan), Scorer(Path("base"), adapter, "float32", "cpu", execution), RECORD
        )
    assert threads == [1]
    assert loads == [(Path("base"), adapter, "float32", "cpu")]
    assert (view.store.folder(cells(plan)[0].digest) / CELL).is_file()


# -- responses -----------------------------------------------------------------------------------------------------


@dataclass
class FakeTalker:
    """Answers `<item> <sample>`, and remembers how often it was asked."""

    asked: list[Generation] = field(default_factory=list[Generation])

    def generate(self, items: Sequence[Item], settings: Generation) -> list[dict[str, object]]:
        self.asked.append(settings)
        about = {"finish_reason": "stop"}
        return [
            {"item": item["item"], "sample": sample, "response": f"{item['item']} {sample}", **about}
            for item in items
            for sample in range(settings.samples)
        ]


class Forbidden:
    """A scorer that must not be used: with it, nothing is loaded."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"asked to {name}")


def rule_column(plan: Plan, positive: str = "0", negative: str = "1") -> Column:
    """Return the plan's rule evaluation under two patterns, which alone tell its digest from others'."""
    (old,) = plan.evaluations
    spec = Spec("rule", old.spec["config"], {"items": f"{positive} {negative}"})
    items = [{**_item(f"warmth-{k}"), "positive": positive, "negative": negative} for k in range(3)]
    return Column(replace(old, digest=spec.digest, spec=spec.as_json()), items, ["evaluated=[warmth]"])  # type: ignore[arg-type]


@pytest.fixture
def rules() -> Plan:
    return make_plan(("honesty",), ("warmth",), views=[("rule", "far")])


def judge(plan: Plan, view: View, column: Column, scorer: object, record: dict[str, Any] = RECORD) -> Cell:
    """Evaluate the plan's first finetune under a column and return the cell."""
    evaluate(view, plan.subjects[1], [column], scorer, record)  # type: ignore[arg-type]
    return Cell(plan.subjects[1], column.evaluation)


def test_responses_are_kept_beside_the_cell_that_is_scored_from_them(rules: Plan, view: View) -> None:
    """Both are linked; the cell holds each response with its score, and says how it was generated."""
    talker, column = FakeTalker(), rule_column(rules, "-[01] 0", "-[01] 1")
    cell = judge(rules, view, column, talker)
    responses = Responses(rules.subjects[1], column.evaluation)
    assert talker.asked == [Generation(max_tokens=8)]
    kept = read_responses(view.root / responses.path, responses.digest)
    assert kept.rows.select("item", "sample").rows() == [(f"warmth-{i}", sample) for i in range(3) for sample in (0, 1)]
    assert kept.about["generation"] == column.evaluation.generation
    table = read_cell(view.root / cell.path, cell.digest)
    assert table.rows["response"].to_list() == kept.rows["response"].to_list()
    assert table.rows["score"].to_list() == [1, 0, 1, 0, None, None]
    assert table.rows["context"].unique().to_list() == ["far"]
    assert responses.path.startswith(f"responses/{rules.subjects[1].name}/warmth.rule.far-")


def test_changing_a_rule_scores_stored_responses_without_a_model(rules: Plan, view: View) -> None:
    """Another cell, the same responses; its record is that of the run which generated them."""
    judge(rules, view, rule_column(rules, "0", "1"), FakeTalker())
    other = rule_column(rules, "1$", "0$")
    cell = judge(rules, view, other, Forbidden(), {**RECORD, "device": "elsewhere"})
    table = read_cell(view.root / cell.path, cell.digest)
    assert table.rows["score"].to_list() == [0, 1, 0, 1, 0, 1]
    assert table.about["execution"] == RECORD
    assert len(view.store.listing()) == 3


def test_damaged_responses_are_quarantined_and_generated_again(rules: Plan, view: View) -> None:
    """The run that finds them ends with an error that names them; the next one makes the cell."""
    judge(rules, view, rule_column(rules), FakeTalker())
    other = rule_column(rules, "1$", "0$")
    responses = Responses(rules.subjects[1], other.evaluation)
    file = view.store.payload(responses.digest, cell=True, file=RESPONSES)
    sound = file.read_bytes()
    file.write_bytes(sound[:-20])
    with pytest.raises(PropgenError, match=r"responses/.*truncated.*quarantine.*the next run makes it again") as caught:
        judge(rules, view, other, Forbidden())
    assert caught.value.exit_code == 1
    assert not file.exists()
    assert not (view.root / responses.path).is_symlink()
    assert len(list((view.root / "quarantine").glob(f"*/{RESPONSES}"))) == 1
    cell = judge(rules, view, other, FakeTalker())
    assert view.shows(cell.path, cell.digest, cell=True)
    assert file.read_bytes() == sound


def test_a_cell_without_any_score_says_so(rules: Plan, view: View, caplog: pytest.LogCaptureFixture) -> None:
    """It is made, with nulls, and the log names it."""
    with caplog.at_level(logging.WARNING, "propgen"):
        cell = judge(rules, view, rule_column(rules, "never", "ever"), FakeTalker())
    assert read_cell(view.root / cell.path, cell.digest).rows["score"].null_count() == 6
    assert f"{cell.path}: no response could be scored" in caplog.text
