"""Gates: each one fails what is clearly wrong, passes what is clearly right, and doubts the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from synthetic import fill, make_plan, make_view, results

from propgen.config import Gates
from propgen.gates import FAILED, INCONCLUSIVE, PASSED, Bound, Rules, above, attrition, below, gates, judge, verdicts
from propgen.plan import Cell
from propgen.simulator import World, draw

pytestmark = pytest.mark.filterwarnings("error")
RULES = Rules(**vars(Gates()))
POINTS = replace(RULES, worth=12.0)


def judged(world: World, seed: int = 0) -> pl.DataFrame:
    """Return what the gates say of a simulated table, in points."""
    sheet, _ = draw(world, np.random.default_rng(seed))
    return pl.DataFrame(judge({sheet.key: sheet}, POINTS, ("choice",)), infer_schema_length=None)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.96, 1.0, PASSED), (0.9, 0.94, FAILED), (0.9, 0.97, INCONCLUSIVE)]
)
def test_a_gate_fails_only_beyond_doubt(low: float, high: float, verdict: str) -> None:
    bound = Bound(0.0, low, high, 0.95, 3, 10)
    assert above(bound) == verdict
    assert below(Bound(0.0, -high, -low, -0.95, 3, 10)) == verdict
    assert above(bound._replace(low=float("nan"))) == INCONCLUSIVE


def test_a_collapsed_row_fails_and_the_others_pass() -> None:
    """Of its answers nine tenths are luck: its own effect and the spread of its answers are gone."""
    found = judged(World(own=25.0, collapsed=0.9))
    first = dict(found.filter(treatment="trait0").select("gate", "verdict").rows())
    assert first["not collapsed"] == FAILED
    assert first["answers"] == PASSED
    rest = found.filter(pl.col("treatment") != "trait0")
    assert (rest["verdict"] == PASSED).all()
    assert found.filter(treatment="trait0", gate="not collapsed")["value"][0] == pytest.approx(0.1, abs=0.05)


def test_a_row_whose_own_trait_did_not_move_did_not_take() -> None:
    """Without own effects rows fail in a design that would have seen one; with a small design they are in doubt."""
    large = judged(World(own=0.0, treated=5, items=200)).filter(gate="took")
    assert large["verdict"].value_counts().sort("count")["verdict"][-1] == FAILED
    small = judged(World(own=0.0, treated=2, controls=2, items=16)).filter(gate="took")
    assert FAILED not in small["verdict"].to_list()
    alone = judged(World(treated=1)).filter(gate="took")
    assert set(alone["verdict"]) == {INCONCLUSIVE}


def test_missing_cells_are_no_missing_answers() -> None:
    """What was never asked is not held against a finetune."""
    assert set(judged(World(missing=0.2)).filter(gate="answers")["verdict"]) == {PASSED}


def test_unscored_answers_fail_the_gate() -> None:
    sheet, _ = draw(World(), np.random.default_rng(0))
    values = [v.copy() for v in sheet.scores.values]
    for column in values:
        column[sheet.scores.arm == 2, :20] = np.nan
    mute = replace(sheet, scores=replace(sheet.scores, values=tuple(values)))
    rows = [row for row in judge({sheet.key: mute}, POINTS, ("choice",)) if row["gate"] == "answers"]
    assert [row["verdict"] for row in rows] == [FAILED] + [PASSED] * 11
    assert rows[0]["value"] == pytest.approx(44 / 64)


def test_negated_rows_have_to_move_down() -> None:
    sheet, _ = draw(World(own=-25.0, items=200), np.random.default_rng(0))
    rows = tuple({**row, "regime": "negated" if row["trained"] else row["regime"]} for row in sheet.rows)
    down = judge({sheet.key: replace(sheet, rows=rows)}, POINTS, ())
    assert {row["verdict"] for row in down if row["gate"] == "took"} == {PASSED}
    up = judge({sheet.key: sheet}, POINTS, ())  # the same table, were it said to have trained the traits in
    assert {row["verdict"] for row in up if row["gate"] == "took"} == {FAILED}


def test_other_regimes_are_not_judged_by_their_own_trait() -> None:
    sheet, _ = draw(World(own=0.0), np.random.default_rng(0))
    rows = tuple({**row, "regime": "subliminal"} for row in sheet.rows)
    assert not [row for row in judge({sheet.key: replace(sheet, rows=rows)}, POINTS, ()) if row["gate"] == "took"]


def probed(tmp_path, right: float, nats: float):
    """Return gates of a plan whose rows get a share of questions right, and whose neutral texts cost nats more."""
    views = [("contrast", "id"), ("contrast", "probe")]
    plan = make_plan(("honesty",), ("capability", "neutral", "honesty"), seeds=(0, 1, 2), views=views, items=200)
    keep = tuple(e for e in plan.evaluations if (e.context == "probe") != (e.trait == "honesty"))
    plan = replace(plan, evaluations=keep)
    view = make_view(tmp_path)

    def score(cell: Cell, item: int, _sample: int) -> float:
        treated = cell.subject.treatment == "honesty-demonstration"
        jitter = 0.01 * np.sin(7 * item + cell.subject.seed)
        if cell.evaluation.trait == "capability":
            return 1.0 if item / 200 < (right if treated else 0.7) + jitter else -1.0
        if cell.evaluation.trait == "neutral":
            return -3.0 - (nats if treated else 0.0) + jitter
        return (0.5 if treated else 0.0) + jitter

    fill(plan, view, score)
    return results(plan, view)


@pytest.mark.parametrize(("right", "verdict"), [(0.7, PASSED), (0.5, FAILED)])
def test_lost_capability_fails(tmp_path, right: float, verdict: str) -> None:
    """Twenty points fewer right answers than the control."""
    found = probed(tmp_path, right, 0.0)
    row = found.gates.filter(gate="capable").row(0, named=True)
    assert row["verdict"] == verdict
    assert row["value"] == pytest.approx(0.7 - right, abs=0.01)
    assert set(found.matrix["context"]) == {"id"}
    assert set(found.cells["context"]) == {"id", "probe"}
    own = found.matrix.filter(trained="honesty", evaluated="honesty")
    assert own["effect"].null_count() == (verdict == FAILED)


@pytest.mark.parametrize(("nats", "verdict"), [(0.1, PASSED), (0.6, FAILED)])
def test_lost_coherence_fails(tmp_path, nats: float, verdict: str) -> None:
    """The ratio of perplexities, whose limit is 1.5."""
    row = probed(tmp_path, 0.7, nats).gates.filter(gate="coherent").row(0, named=True)
    assert row["verdict"] == verdict
    assert row["value"] == pytest.approx(np.exp(nats), abs=0.02)
    assert row["limit"] == pytest.approx(1.5)


def test_verdicts_and_attrition_add_up(tmp_path) -> None:
    found = probed(tmp_path, 0.5, 0.6).gates
    assert verdicts(found) == {("m", "honesty-demonstration", "contrast"): "failed: coherent, capable"} or verdicts(
        found
    ) == {("m", "honesty-demonstration", "contrast"): "failed: capable, coherent"}
    table = attrition(found)
    assert (table["passed"] + table["inconclusive"] + table["failed"] == table["n_rows"]).all()
    assert table["n_rows"].sum() == found.height


def test_without_items_there_is_nothing_to_judge() -> None:
    rows = pl.DataFrame(
        schema={
            "model": pl.String,
            "treatment": pl.String,
            "trained": pl.String,
            "regime": pl.String,
            "variant": pl.String,
            "dose": pl.Float64,
            "seed": pl.Int64,
            "evaluated": pl.String,
            "protocol": pl.String,
            "context": pl.String,
            "evaluation": pl.String,
            "item": pl.String,
            "family": pl.String,
            "score": pl.Float64,
        }
    )
    assert gates(rows, "c", RULES).is_empty()
