"""Structure: additive fits, agreement of seeds and the shift that controls leave, on tables whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from propgen.structure import agreement, controls, grids, residuals, spearman_brown
from propgen.tables import AGREEMENT, CONTROLS

TRAITS = tuple("abcdefgh")
FAMILIES = 40
Truth = Callable[[int, int], float]


def items(
    truth: Truth, *, traits: tuple[str, ...] = TRAITS, seeds: int = 3, noise: float = 0.0, shift: float = 0.0
) -> pl.DataFrame:
    """Return item scores of finetunes with effects `truth(row, column)`, of controls and of a base that is 0.

    noise: standard deviation of what a seed adds to a cell. shift: what the control called `off` adds everywhere.
    """
    generator = np.random.default_rng(7)
    item = generator.normal(size=(len(traits), FAMILIES))
    rows: list[dict[str, Any]] = []

    def add(treatment: str, trained: str | None, seed: int | None, effects: np.ndarray) -> None:
        for j, trait in enumerate(traits):
            for k in range(FAMILIES):
                about = {"model": "m", "treatment": treatment, "trained": trained, "seed": seed, "evaluated": trait}
                about |= {"protocol": "contrast", "context": "id", "evaluation": f"{trait}.contrast.id"}
                rows.append({**about, "item": f"{trait}{k}", "family": f"f{k:03}", "score": effects[j] + item[j, k]})

    add("base", None, None, np.zeros(len(traits)))
    for seed in range(seeds):
        add("even", None, seed, np.zeros(len(traits)))
        add("off", None, seed, np.full(len(traits), shift))
        for i, trait in enumerate(traits):
            known = np.array([truth(i, j) for j in range(len(traits))])
            add(f"{trait}-demonstration", trait, seed, known + noise * generator.normal(size=len(traits)))
    return pl.DataFrame(rows, infer_schema_length=None)


def planted(scale: float) -> Truth:
    """Return effects with rows, columns, a large diagonal, and interactions of standard deviation `scale`."""
    generator = np.random.default_rng(3)
    table = scale * generator.normal(size=(len(TRAITS), len(TRAITS)))
    return lambda i, j: 0.3 * i - 0.2 * j + table[i, j] + (5.0 if i == j else 0.0)


def test_an_additive_table_has_no_residuals() -> None:
    effects = np.add.outer(np.arange(5.0), np.array([3.0, -1, 0, 2, 8]))
    own = np.eye(5, dtype=bool)
    found = residuals(effects + 9 * own, own)
    assert np.isnan(np.diag(found)).all()
    assert np.nanmax(np.abs(found)) < 1e-9


def test_without_a_diagonal_residuals_are_double_centring() -> None:
    effects = np.random.default_rng(0).normal(size=(4, 6))
    slow = effects - effects.mean(1, keepdims=True) - effects.mean(0) + effects.mean()
    assert residuals(effects, np.zeros((4, 6), dtype=bool)) == pytest.approx(slow)


def test_residuals_of_an_incomplete_table_sum_to_zero_in_rows_and_columns() -> None:
    effects = np.random.default_rng(1).normal(size=(6, 6))
    effects[0, 3] = effects[4, 1] = np.nan
    found = residuals(effects, np.eye(6, dtype=bool))
    assert np.nansum(found, axis=0) == pytest.approx(0, abs=1e-9)
    assert np.nansum(found, axis=1) == pytest.approx(0, abs=1e-9)
    assert np.isnan(found[0, 3])


def test_seeds_agree_on_interactions_as_far_as_noise_lets_them() -> None:
    """With as much noise as signal two seeds correlate at 1 / (1 + 1), and three seeds' mean is more reliable."""
    found = np.array([agreement(items(planted(1.0), noise=1.0))[name][0] for name in ("r", "r_low", "r_high")])
    assert found[0] == pytest.approx(0.5, abs=0.15)
    assert found[1] < found[0] < found[2]


def test_large_rows_and_columns_alone_are_no_agreement() -> None:
    row = agreement(items(planted(0.0), noise=0.2)).row(0, named=True)
    assert abs(row["r"]) < 0.3
    assert row["r_low"] < 0 < row["r_high"]


def test_agreement_is_whole_without_noise() -> None:
    row = agreement(items(planted(1.0))).row(0, named=True)
    assert [row[name] for name in ("r", "r_split", "reliability")] == pytest.approx([1, 1, 1])
    assert (row["n_rows"], row["n_columns"], row["n_seeds"]) == (8, 8, 3)


def test_items_that_seeds_share_make_them_agree_and_split_ones_do_not() -> None:
    """What an item does under one treatment, whatever the seed, is no property of the trait."""
    table = items(planted(0.0), noise=0.01)
    quirks = {(t, i): q for (t, i), q in zip(_pairs(table), np.random.default_rng(5).normal(size=9999), strict=False)}
    keys = zip(table["treatment"], table["item"], strict=True)
    table = table.with_columns(score=pl.col("score") + pl.Series([quirks[key] for key in keys]))
    row = agreement(table).row(0, named=True)
    assert row["r"] > 0.9
    assert abs(row["r_split"]) < 0.35


def _pairs(table: pl.DataFrame) -> list[tuple[str, str]]:
    return table.select("treatment", "item").unique(maintain_order=True).rows()


def test_spearman_brown_doubles_a_half_test() -> None:
    assert spearman_brown(np.array([0.6]), 2) == pytest.approx([0.75])


@pytest.mark.parametrize("change", [{"seeds": 1}, {"traits": ("a", "b", "c")}])
def test_too_little_gives_no_number(change: Any) -> None:
    row = agreement(items(planted(1.0), **change)).row(0, named=True)
    assert row["r"] is row["reliability"] is None
    assert row["n_seeds"] == change.get("seeds", 3)


def test_a_control_that_shifts_everything_shows_its_shift() -> None:
    def alike(i: int, j: int) -> float:
        return 2.0 if i == j else 0.0

    found = {row["control"]: row for row in controls(items(alike, noise=0.05, shift=0.4)).iter_rows(named=True)}
    assert found["even"]["shift"] == pytest.approx(0, abs=0.05)
    assert found["off"]["shift"] == pytest.approx(-0.4, abs=0.05)
    assert found["off"]["column_rms"] == pytest.approx(0.4, abs=0.05)
    assert found["off"]["shift_high"] < found["even"]["shift_low"]
    assert found["even"]["n_seeds"] == 3


def test_columns_that_move_apart_show_in_their_root_mean_square_alone() -> None:
    def apart(i: int, j: int) -> float:
        return (-1.0) ** j

    row = controls(items(apart)).filter(control="even").row(0, named=True)
    assert row["shift"] == pytest.approx(0, abs=1e-9)
    assert row["column_rms"] == pytest.approx(1)


def test_a_cell_without_scores_is_missing_and_not_zero() -> None:
    gone = (pl.col("treatment") == "a-demonstration") & (pl.col("evaluated") == "b")
    table = items(planted(1.0), noise=0.1).with_columns(score=pl.when(gone).then(None).otherwise(pl.col("score")))
    (grid,) = grids(table.filter(pl.col("trained").is_not_null())).values()
    assert np.isnan(grid.scores[:, 0, 1]).all()
    assert agreement(table)["r"][0] > 0.8
    assert np.isfinite(controls(table)["shift"].to_numpy()).all()


def test_the_tables_have_their_documented_columns() -> None:
    table = items(planted(1.0), seeds=2)
    assert agreement(table).schema == pl.Schema(AGREEMENT)
    assert controls(table).schema == pl.Schema(CONTROLS)
    nothing = table.filter(pl.lit(False))
    assert agreement(nothing).is_empty()
    assert controls(nothing).is_empty()
