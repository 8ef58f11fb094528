"""Generality: views that agree, views that do not, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from propgen.generality import generality, qap, seed_effects, views
from propgen.sheet import Sheet
from propgen.simulator import World, draw
from propgen.structure import residuals
from propgen.tables import GENERALITY

pytestmark = pytest.mark.filterwarnings("error")


def twins(seed: int = 0, traits: int = 10, treated: int = 3) -> tuple[Sheet, Sheet]:
    """Return two base models' sheets with the same true effects and their own noise."""
    dice = np.random.default_rng(seed)
    first, truth = draw(World(rank=2, traits=traits, treated=treated), dice)
    blank, _ = draw(World(own=0.0, traits=traits, treated=treated), dice)
    arms = np.concatenate([np.zeros((2, traits)), truth])[blank.scores.arm]
    values = tuple(v + arms[:, [j]] for j, v in enumerate(blank.scores.values))
    return first, replace(blank, model="other", scores=replace(blank.scores, values=values))


def test_models_with_the_same_effects_agree() -> None:
    found = generality(twins())
    assert found.schema == GENERALITY
    row = found.row(0, named=True)
    assert (row["across"], row["n_rows"], row["n_columns"], row["permutation"]) == ("model", 10, 10, "joint")
    assert row["r_low"] < row["r"] < row["r_high"]
    assert row["r"] > 0.7
    assert row["p"] < 0.01
    assert row["r_corrected"] == pytest.approx(1.0, abs=0.15)


def test_models_with_other_effects_do_not() -> None:
    first, _ = twins(1)
    second = replace(twins(2)[0], model="other")
    row = generality([first, second]).row(0, named=True)
    assert abs(row["r"]) < 0.45
    assert row["p"] > 0.05


def test_one_seed_has_no_reliability_and_is_not_corrected() -> None:
    row = generality(twins(treated=1)).row(0, named=True)
    assert row["r"] > 0.4
    assert (row["reliability"], row["reliability_b"], row["r_corrected"]) == (None, None, None)


def test_views_that_differ_twice_or_share_too_little_are_not_compared() -> None:
    first, second = twins()
    assert generality([first, replace(second, context="far")]).is_empty()
    small = twins(traits=3)
    assert generality(small).is_empty()
    assert generality([]).is_empty()


def test_seed_effects_are_differences_from_the_mean_control() -> None:
    sheet, _ = draw(World(), np.random.default_rng(0))
    found = seed_effects(sheet)
    means = sheet.scores.means
    slow = means[(sheet.scores.arm == 5) & (sheet.seeds == 1)][0] - means[sheet.scores.arm == 1].mean(axis=0)
    assert found.shape == (3, 12, 12)
    assert found[1, 3] == pytest.approx(slow)
    assert len(views([sheet])) == 1


def test_joint_permutation_keeps_own_cells_own() -> None:
    """Rows in another order than columns: a table that equals itself is as unlikely as can be."""
    dice = np.random.default_rng(0)
    order = dice.permutation(8)
    own = order[:, None] == np.arange(8)
    table = residuals(dice.normal(size=(8, 8)), own)
    assert qap(table, table, list(order)) == pytest.approx(1 / 2001, abs=0.002)
    assert qap(table, residuals(dice.normal(size=(8, 8)), own), list(order)) > 0.02  # type: ignore[operator]
    assert qap(np.full((4, 4), np.nan), np.full((4, 4), np.nan), []) is None


def test_the_permutation_test_is_honest() -> None:
    """Unrelated tables are called related in about one of twenty."""
    dice = np.random.default_rng(1)
    own = np.eye(6, dtype=bool)
    found = []
    for _ in range(60):
        a, b = (residuals(dice.normal(size=(6, 6)), own) for _ in range(2))
        found.append(qap(a, b, list(range(6))))
    assert np.mean(np.array(found, dtype=float) < 0.05) < 0.15
