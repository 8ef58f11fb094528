"""Analysis: effects are differences from controls, and nothing is averaged that should not be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from synthetic import Results, fill, make_cell, make_plan, make_view, results

from propgen.analysis import write_tables
from propgen.errors import PropgenError
from propgen.plan import BASE, Cell, Plan
from propgen.store import View
from propgen.tables import CELLS, MATRIX

pytestmark = pytest.mark.filterwarnings("error")
VIEWS = (("contrast", "id"), ("choice", "far"))


def noise(cell: Cell, item: int, sample: int) -> float:
    """Return a fixed score between 0 and 1 for a cell's item and sample."""
    return np.random.default_rng([int(cell.digest[:8], 16), item, sample]).uniform()


@pytest.fixture
def plan() -> Plan:
    return make_plan(("honesty", "formality"), models=("m", "n"), views=VIEWS, seeds=(0, 1, 2), controls=("c", "d"))


@pytest.fixture
def view(tmp_path: Path) -> View:
    return make_view(tmp_path)


@pytest.fixture
def tables(plan: Plan, view: View) -> Results:
    """Return the tables of a plan with two models, two protocols and two controls."""
    fill(plan, view, noise)
    return results(plan, view)


def test_every_effect_is_the_score_minus_the_mean_control(plan: Plan, tables: Results) -> None:
    """In every row of cells.parquet, with score, control and base computed afresh from the items."""
    assert tables.cells.height == len(list(plan.cells)) == 2 * (1 + 4 + 6) * 4
    for row, cell in zip(tables.cells.iter_rows(named=True), plan.cells, strict=True):
        samples = range(2 if cell.evaluation.protocol == "choice" else 1)

        def mean(of: Cell, samples: range = samples) -> float:
            return float(np.mean([[noise(of, item, sample) for sample in samples] for item in range(4)]))

        same = [s for s in plan.subjects if s.model == cell.subject.model]
        control = [mean(Cell(s, cell.evaluation)) for s in same if s.treatment == plan.control]
        base = [mean(Cell(s, cell.evaluation)) for s in same if s.treatment == BASE]
        assert row["score"] == pytest.approx(mean(cell))
        assert row["control"] == pytest.approx(np.mean(control))
        assert row["base"] == pytest.approx(base[0])
        assert row["effect"] == pytest.approx(mean(cell) - np.mean(control))
        assert (row["adapter"], row["cell"]) == (cell.subject.digest, cell.digest)


def test_a_matrix_effect_is_the_mean_of_its_seeds_effects(tables: Results) -> None:
    """matrix.parquet agrees with cells.parquet for every trained treatment."""
    keys = ["model", "treatment", "evaluation"]
    means = tables.cells.group_by(keys).agg(pl.col("effect").mean().alias("expected"), pl.len().alias("n"))
    joined = tables.matrix.filter(pl.col("trained").is_not_null()).join(means, on=keys, how="left")
    assert joined.height == 2 * 2 * 4
    np.testing.assert_allclose(joined["effect"], joined["expected"])
    assert joined["n_seeds"].to_list() == joined["n"].to_list()
    assert joined["reference"].unique().to_list() == ["c"]
    assert joined["n_controls"].unique().to_list() == [2]


def test_base_and_controls_are_rows_of_cells(plan: Plan, tables: Results) -> None:
    """They have no trained trait, and the base model has no seed."""
    rows = tables.cells.filter(pl.col("trained").is_null())
    assert sorted(rows["treatment"].unique()) == [BASE, "c", "d"]
    assert rows.filter(treatment=BASE)["seed"].to_list() == [None] * 8
    assert sorted(rows.filter(treatment="c")["seed"].unique()) == [0, 1]
    assert tables.cells.filter(pl.col("trained").is_not_null())["seed"].null_count() == 0


def test_controls_are_compared_with_the_base(tables: Results) -> None:
    """The matrix has a row of control - base for each control, and none for the base model itself."""
    rows = tables.matrix.filter(reference=BASE)
    assert sorted(rows["treatment"].unique()) == ["c", "d"]
    assert rows.select("trained", "q", "tau").null_count().row(0) == (16, 16, 16)
    assert rows["n_controls"].unique().to_list() == [0]
    control = tables.cells.filter(treatment="d").group_by("model", "evaluation").agg(pl.col("score").mean())
    joined = rows.filter(treatment="d").join(control, on=["model", "evaluation"])
    base = tables.cells.filter(treatment=BASE).select("model", "evaluation", "base")
    joined = joined.join(base, on=["model", "evaluation"])
    np.testing.assert_allclose(joined["effect"], joined["score"] - joined["base"])
    assert tables.matrix.filter(treatment=BASE).is_empty()


def test_choice_cells_average_both_orders_of_an_item(plan: Plan, view: View) -> None:
    """An item is one observation: its two orders make one score, and both count for the preference."""
    plan = make_plan(("honesty",), views=[("choice", "id")], items=2)
    fill(plan, view, lambda _cell, item, sample: [[0.9, 0.3], [0.2, 0.2]][item][sample])
    row = results(plan, view).cells.row(0, named=True)
    assert (row["n_items"], row["n_scored"]) == (2, 2)
    assert row["score"] == pytest.approx(0.4)
    assert row["sd_items"] == pytest.approx(np.std([0.6, 0.2], ddof=1))
    assert row["preference"] == 0.25


def test_unscoreable_items_are_counted_and_not_averaged(view: View) -> None:
    """A null counts among the items, not among the scored ones, and is no zero."""
    plan = make_plan(("honesty",), items=4)
    fill(plan, view, lambda _cell, item, _sample: None if item == 0 else 1.0 + item)
    row = results(plan, view).cells.row(0, named=True)
    assert (row["n_items"], row["n_scored"], row["score"], row["preference"]) == (4, 3, 3.0, 1.0)


def test_rules_are_averaged_over_samples_and_then_items(view: View) -> None:
    """A null sample leaves its item to the other one; an item without any score is counted, and not averaged."""
    plan = make_plan(("honesty",), views=[("rule", "id")])
    scores = {(0, 0): 1.0, (0, 1): None, (1, 0): 1.0, (1, 1): 0.0, (2, 0): 0.0, (2, 1): 0.0}
    fill(plan, view, lambda _cell, item, sample: scores.get((item, sample)))
    tables = results(plan, view)
    assert tables.cells.select("n_items", "n_scored", "score", "preference").unique().rows() == [(4, 3, 0.5, 0.4)]
    assert tables.items["response"].null_count() == 0
    assert tables.matrix["effect"].to_list() == [0.0, 0.0]


def test_a_finetune_that_answers_nothing_is_no_seed(view: View) -> None:
    """Its cell has no score and no effect, and the matrix averages the other seeds."""
    plan = make_plan(("honesty", "formality"), seeds=(0, 1, 2), items=6)

    def score(cell: Cell, item: int, sample: int) -> float | None:
        mute = cell.subject.treatment == "honesty-demonstration" and cell.subject.seed == 1
        return None if mute else noise(cell, item, sample)

    fill(plan, view, score)
    tables = results(plan, view)
    silent = tables.cells.filter(treatment="honesty-demonstration", seed=1)
    assert silent.select("score", "effect", "sd_items", "preference").null_count().row(0) == (2, 2, 2, 2)
    assert silent["n_scored"].to_list() == [0, 0]
    assert tables.matrix.filter(treatment="honesty-demonstration")["gate"].unique().to_list() == ["failed: answers"]
    assert tables.matrix.filter(treatment="honesty-demonstration")["effect"].null_count() == 2
    rows = tables.everything.filter(treatment="honesty-demonstration")
    others = tables.cells.filter(treatment="honesty-demonstration", evaluation=rows["evaluation"][0])["effect"]
    assert rows["n_seeds"].to_list() == [2, 2]
    assert rows["effect"][0] == pytest.approx(others.mean())
    for frame in (tables.matrix, tables.everything):
        assert not any(frame.select(pl.selectors.float().is_nan().any()).row(0))


@pytest.mark.parametrize("mute", [BASE, "control-shuffled", "honesty-demonstration"])
def test_an_arm_that_answers_nothing_gives_rows_without_effects(view: View, mute: str) -> None:
    """The rows stay, with nulls for whatever cannot be said."""
    plan = make_plan(("honesty", "formality"), items=6)
    fill(plan, view, lambda cell, *rest: None if cell.subject.treatment == mute else noise(cell, *rest))
    matrix = results(plan, view).matrix
    assert matrix.height == 3 * 2
    gone = matrix.filter((pl.col("treatment") == mute) | (pl.col("reference") == mute))
    assert not gone.is_empty()
    assert (
        gone.select("effect", "se", "ci_low", "p", "q", "mde", "effect_std").null_count().row(0) == (gone.height,) * 7
    )


def test_missing_cells_are_named_or_left_out(plan: Plan, view: View) -> None:
    """partial=False refuses with the number and a name; partial=True tabulates the others and says so."""
    lost = [cell for cell in plan.cells if cell.subject.treatment == "honesty-demonstration"][:9]
    fill(plan, view, noise, leave_out={cell.digest for cell in lost})
    with pytest.raises(PropgenError, match=f"9 cells are missing.*{lost[0].path}"):
        results(plan, view)
    tables = results(plan, view, partial=True)
    assert tables.about["missing"] == [cell.path for cell in lost]
    assert tables.cells.height == len(list(plan.cells)) - 9
    rows = tables.matrix.filter(model="m", treatment="honesty-demonstration")
    assert rows["evaluation"].to_list() == [e.name for e in plan.evaluations[1:]]
    assert rows["n_seeds"].to_list() == [1, 1, 1]


def test_without_any_cell_there_is_nothing_to_tabulate(plan: Plan, view: View) -> None:
    """Not even partially: an empty table would look like a result."""
    for partial in (False, True):
        with pytest.raises(PropgenError, match="snakemake"):
            results(plan, view, partial=partial)


@pytest.mark.parametrize("kept", [BASE, "c"])
def test_a_partial_matrix_without_controls_or_base_has_no_row_for_them(plan: Plan, view: View, kept: str) -> None:
    """What cannot be compared is absent, and the schema still holds."""
    fill(plan, view, noise, leave_out={c.digest for c in plan.cells if c.subject.treatment not in (kept, "c", BASE)})
    for cell in plan.cells:
        if cell.subject.treatment != kept and view.store.folder(cell.digest).is_dir():
            view.store.remove(cell.digest)
    tables = results(plan, view, partial=True)
    assert tables.matrix.is_empty()
    assert tables.matrix.schema == pl.Schema(MATRIX)
    assert tables.cells["treatment"].unique().to_list() == [kept]


@pytest.mark.parametrize("partial", [False, True])
def test_corrupt_cells_are_quarantined_and_never_averaged(plan: Plan, view: View, partial: bool) -> None:
    """All of them are named and moved, their links go, and the next partial run reports them as missing."""
    fill(plan, view, noise)
    bad = [list(plan.cells)[i] for i in (2, 30)]
    for cell in bad:
        path = view.store.payload(cell.digest, cell=True)
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PropgenError) as caught:
        results(plan, view, partial=partial)
    assert caught.value.exit_code == 1
    for cell in bad:
        assert cell.path in str(caught.value)
        assert not (view.root / cell.path).is_symlink()
        assert not view.store.folder(cell.digest).exists()
    assert len(list((view.root / "quarantine").glob("*/cell.parquet"))) == 2
    assert results(plan, view, partial=True).about["missing"] == [cell.path for cell in bad]


def test_a_whole_cell_in_anothers_place_is_quarantined(plan: Plan, view: View) -> None:
    """A file that was copied over another cell is foreign, however sound."""
    fill(plan, view, noise)
    first, second = list(plan.cells)[:2]
    view.store.payload(second.digest, cell=True).write_bytes(view.store.payload(first.digest, cell=True).read_bytes())
    with pytest.raises(PropgenError, match="another cell"):
        results(plan, view)


def test_q_is_of_tested_off_diagonal_cells_alone(view: View) -> None:
    """Diagonal and controls have p but no q; off the diagonal q is at least p, within model, protocol and context."""
    plan = make_plan(("honesty", "formality"), models=("m", "n"), views=(*VIEWS, ("contrast", "far")))
    fill(plan, view, noise)
    matrix = results(plan, view).matrix
    off = pl.col("trained").is_not_null() & (pl.col("trained") != pl.col("evaluated"))
    assert matrix.filter(off)["q"].null_count() == 0
    assert (matrix.filter(off)["q"] >= matrix.filter(off)["p"]).all()
    rest = matrix.filter(~off.fill_null(False))
    assert rest["q"].null_count() == rest.height
    assert rest["p"].null_count() == 0
    groups = matrix.filter(off).partition_by("model", "protocol", "context")
    assert len(groups) == 6
    for group in groups:
        assert group.height == 2
        assert group["q"].max() == pytest.approx(group["p"].max())


def test_transfer_is_the_effect_over_the_own_effect(tables: Results) -> None:
    """Transfer is 1 on the diagonal, and elsewhere the ratio of two effects of the same row and view."""
    keys = ["model", "treatment", "protocol", "context"]
    trained = tables.matrix.filter(pl.col("trained").is_not_null())
    own = trained.filter(pl.col("trained") == pl.col("evaluated"))
    joined = trained.join(own.select(*keys, own="effect"), on=keys)
    assert own["tau"].to_list() == [1.0] * own.height
    np.testing.assert_allclose(joined["tau"], joined["effect"] / joined["own"])


def test_standardised_effects_divide_by_the_base_models_items(plan: Plan, view: View) -> None:
    """effect_std is effect over the standard deviation of the base model's items, which counts as .05 at least."""
    fill(plan, view, lambda cell, *rest: 0.25 if cell.subject.treatment == BASE else noise(cell, *rest))
    matrix = results(plan, view).matrix
    np.testing.assert_allclose(matrix["effect_std"], matrix["effect"] / 0.05)
    for cell in plan.cells:
        if cell.subject.treatment == BASE:
            view.store.remove(cell.digest)
            make_cell(view, cell, lambda _cell, item, _sample: float(item))
    matrix = results(plan, view).matrix
    np.testing.assert_allclose(matrix["effect_std"], matrix["effect"] / np.std(range(4), ddof=1))


def test_one_item_and_one_seed_give_effects_without_intervals(view: View) -> None:
    """The smallest experiment has a matrix of effects, and null for all that it cannot say."""
    plan = make_plan(("honesty", "formality"), seeds=(0,), control_seeds=(0,), items=1)
    fill(plan, view, noise)
    matrix = results(plan, view).matrix
    assert matrix["effect"].null_count() == 0
    unknown = ["se", "ci_low", "ci_high", "p", "q", "mde", "tau_low", "tau_high", "effect_std"]
    assert matrix.select(unknown).null_count().row(0) == (matrix.height,) * len(unknown)


def test_mixtures_of_data_types_are_reported(plan: Plan, view: View, tmp_path: Path) -> None:
    """The tables' metadata names every combination of engine, data type and device."""
    cells = list(plan.cells)
    fill(plan, view, noise, leave_out={cells[5].digest})
    make_cell(view, cells[5], noise, dtype="bfloat16")
    write_tables(tmp_path / "out", results(plan, view))
    about = json.loads(pl.read_parquet_metadata(tmp_path / "out/matrix.parquet")["propgen"])
    assert about["execution"] == ["transformers bfloat16 cpu", "transformers float32 cpu"]
    assert about["digest"] == plan.matrix_digest


def test_tables_are_written_in_their_schemas_with_the_same_bytes(tables: Results, tmp_path: Path) -> None:
    """Cells and matrix read back as they were; the CSV has the matrix's rows; no scratch remains."""
    for name in ("runs[1]", "again"):
        write_tables(tmp_path / name, tables)
    folder = tmp_path / "runs[1]"
    assert sorted(p.name for p in folder.iterdir()) == [
        "cells.parquet",
        "matrix.csv",
        "matrix.parquet",
        "statistics",
    ]
    for name, schema in (("cells", CELLS), ("matrix", MATRIX)):
        frame = pl.read_parquet((folder / f"{name}.parquet").read_bytes())
        assert frame.schema == pl.Schema(schema)
        assert_frame_equal(frame, getattr(tables, name))
    assert pl.read_csv(folder / "matrix.csv", glob=False).height == tables.matrix.height
    assert_frame_equal(pl.read_parquet(folder / "statistics/matrix-all.parquet", glob=False), tables.everything)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) == 4
    for path in written:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_items_hold_every_row_of_every_cell(plan: Plan, tables: Results) -> None:
    """The analysis can be done again from items.parquet alone: same scores, both protocols' observations."""
    assert tables.items.height == 2 * 11 * 2 * (4 + 8)
    scores = tables.items.group_by("model", "treatment", "seed", "evaluation", "item").agg(pl.col("score").mean())
    scores = scores.group_by("model", "treatment", "seed", "evaluation").agg(pl.col("score").mean())
    joined = tables.cells.join(
        scores, on=["model", "treatment", "seed", "evaluation"], nulls_equal=True, suffix="_again"
    )
    assert joined.height == tables.cells.height
    np.testing.assert_allclose(joined["score"], joined["score_again"])
    assert {"logprob_positive", "p_positive", "order"} <= set(tables.items.columns)
    assert tables.items["context"].unique().sort().to_list() == ["far", "id"]


def test_a_failed_row_is_missing_beside_an_analysis_of_all_rows(view: View) -> None:
    """A row whose answers are luck has no numbers in the matrix; the others are as without it; `everything` has it."""
    plan = make_plan(("honesty", "formality", "malice"), seeds=(0, 1, 2), views=[("choice", "id")], items=60)

    def score(cell: Cell, item: int, sample: int) -> float:
        gone = cell.subject.treatment == "malice-demonstration"
        own = 0.2 * cell.subject.treatment.startswith(cell.evaluation.trait)
        return 0.5 if gone else 0.1 + own + 0.5 * (item // 2 % 10) / 10 + 0.02 * noise(cell, item, sample)

    fill(plan, view, score)
    tables = results(plan, view)
    verdicts = dict(tables.matrix.filter(pl.col("trained").is_not_null()).select("trained", "gate").rows())
    assert verdicts["malice"] == "failed: not collapsed"
    assert verdicts["honesty"] == verdicts["formality"] == "passed"
    assert tables.matrix.filter(trained="malice").select("effect", "p", "tau").null_count().row(0) == (3, 3, 3)
    assert tables.everything.filter(trained="malice")["effect"].null_count() == 0
    assert tables.cells.filter(trained="malice")["effect"].null_count() == 0
    assert tables.matrix.filter(trained="honesty")["n_items"].to_list() == [30, 60, 60]
    assert tables.everything.filter(trained="honesty")["n_items"].to_list() == [60, 60, 60]


def test_logits_check_probabilities_alone(tables: Results) -> None:
    """Choices have an effect on the logit scale of the same sign; contrasts have none."""
    assert tables.matrix.filter(protocol="contrast")["effect_logit"].null_count() == 2 * 4 * 2
    choice = tables.matrix.filter(protocol="choice")
    assert np.corrcoef(choice["effect"], choice["effect_logit"])[0, 1] > 0.9
