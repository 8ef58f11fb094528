"""Factors: planted ranks are found, held-out cells predicted by the model that made them, symmetry recognised."""

from __future__ import annotations

import numpy as np
import pytest

from propgen.factors import (
    ADDITIVE,
    GENERAL,
    INDEPENDENT,
    VALENCE,
    additive,
    cluster,
    comovement,
    compare,
    left_out,
    loadings,
    low_rank,
    rank,
    symmetry,
)
from propgen.structure import residuals

pytestmark = pytest.mark.filterwarnings("error")
N = 12
OWN = np.eye(N, dtype=bool)
QUIET = np.full((N, N), 2.6**2)


def planted(k: int, seed: int = 0, noise: float = 2.6) -> np.ndarray:
    """Return effects of rank k with standard deviation 8 beside rows, columns and noise."""
    dice = np.random.default_rng(seed)
    rows, columns = dice.normal(size=(2, N, k))
    found = rows @ columns.T
    found = 8 * found / found.std() if k else np.zeros((N, N))
    return found + 5 * dice.normal(size=(N, 1)) + 5 * dice.normal(size=N) + noise * dice.normal(size=(N, N))


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_planted_rank_is_found(k: int) -> None:
    found = [rank(planted(k, seed), OWN, QUIET, np.random.default_rng(seed)) for seed in range(40)]
    assert sum(f is not None and f.k == k for f in found) >= 35


def test_a_table_that_is_too_small_has_no_rank() -> None:
    dice = np.random.default_rng(0)
    assert rank(np.ones((3, 3)), np.eye(3, dtype=bool), np.ones((3, 3)), dice) is None
    assert rank(np.full((6, 6), np.nan), np.eye(6, dtype=bool), np.ones((6, 6)), dice) is None
    assert rank(planted(1), OWN, np.full((N, N), np.nan), dice) is None


def test_constant_effects_have_no_component() -> None:
    found = rank(np.full((N, N), 3.0), OWN, QUIET, np.random.default_rng(0))
    assert found is not None
    assert found.k == 0


def test_gaps_are_filled_by_the_fit() -> None:
    """A table of rank 2 with a tenth of its cells gone is found again, gaps included."""
    dice = np.random.default_rng(1)
    whole = dice.normal(size=(20, 2)) @ dice.normal(size=(2, 15))
    gaps = np.where(dice.uniform(size=whole.shape) < 0.1, np.nan, whole)
    assert np.abs(low_rank(gaps, 2) - whole).max() < 0.3
    assert (low_rank(gaps, 0) == 0).all()


def test_additive_fits_reach_into_gaps() -> None:
    table = np.add.outer(np.arange(5.0), np.arange(6.0))
    assert additive(np.where(np.eye(5, 6, dtype=bool), np.nan, table)) == pytest.approx(table)


def test_a_left_out_seed_is_best_predicted_by_the_right_rank() -> None:
    dice = np.random.default_rng(2)
    true = residuals(planted(2, noise=0), OWN)
    seeds = [true + 3 * dice.normal(size=true.shape) for _ in range(4)]
    pairs = [(np.mean([s for s in seeds if s is not left], axis=0), left) for left in seeds]
    assert left_out(pairs) == 2
    assert left_out([]) is None


def test_the_model_that_made_a_table_predicts_its_cells() -> None:
    signs = np.sign(np.arange(N) % 3 - 1.0)
    valence = np.outer(signs, signs)
    dice = np.random.default_rng(3)
    factor = {fit.model: fit for fit in compare(planted(1, 3), OWN, valence, np.random.default_rng(0))}
    assert factor[GENERAL].r2 > factor[ADDITIVE].r2 + 0.2
    assert factor[INDEPENDENT].r2 == 0
    good = 6 * valence + dice.normal(size=(N, N))
    moral = {fit.model: fit for fit in compare(good, OWN, valence, np.random.default_rng(0))}
    assert moral[VALENCE].r2 > moral[ADDITIVE].r2 + 0.5
    margins = np.add.outer(5 * dice.normal(size=N), 5 * dice.normal(size=N)) + dice.normal(size=(N, N))
    plain = {fit.model: fit for fit in compare(margins, OWN, None, np.random.default_rng(0))}
    assert VALENCE not in plain
    assert plain[ADDITIVE].r2 > 0.9
    noise = {fit.model: fit for fit in compare(dice.normal(size=(N, N)), OWN, None, np.random.default_rng(0))}
    assert max(fit.r2 for fit in noise.values()) == 0
    assert compare(np.ones((3, 3)), np.eye(3, dtype=bool), None, dice) == []


def test_loadings_are_those_that_were_planted() -> None:
    dice = np.random.default_rng(4)
    true = dice.normal(size=N)
    table = residuals(np.outer(dice.normal(size=N), 8 * true) + dice.normal(size=(N, N)), OWN)
    found = loadings(table, 1, dice)
    assert abs(np.corrcoef(found.value[:, 0], true)[0, 1]) > 0.95
    assert (found.low <= found.value + 1e-9).mean() > 0.9
    assert ((found.low > 0) | (found.high < 0)).mean() > 0.4
    assert loadings(table, 0, dice).value.shape == (N, 0)


def test_traits_that_go_together_share_a_cluster() -> None:
    dice = np.random.default_rng(5)
    group = np.arange(N) % 2
    table = dice.normal(size=(20, 2))[:, group] + 0.3 * dice.normal(size=(20, N))
    found = cluster(table, dice)
    assert found is not None
    assert len(set(found.labels)) == 2
    assert all(a == b for a, b in zip(found.labels[0::2], found.labels[0::2][1:], strict=False))
    same = group[:, None] == group
    assert found.together[same].mean() > 0.9 > 0.2 > found.together[~same].mean()
    assert sorted(found.order) == list(range(N))
    assert cluster(np.ones((4, 5)), dice) is None


def test_comovement_leaves_own_cells_out() -> None:
    """Large own effects would make unrelated traits look opposed; without them nothing is left."""
    dice = np.random.default_rng(6)
    scores = dice.normal(size=(3, 40, 5))
    own = np.zeros((40, 5), dtype=bool)
    own[np.arange(40), np.arange(40) % 5] = True
    found = comovement(scores + 50 * own, own)
    assert np.abs(found[~np.eye(5, dtype=bool)]).max() < 0.35
    assert np.diag(found) == pytest.approx(np.ones(5))
    slow = scores.reshape(-1, 5)
    assert comovement(scores, 0 * own > 0) == pytest.approx(np.corrcoef(slow.T))


@pytest.mark.parametrize(("sign", "least", "most"), [(1, 0.8, 1.2), (-1, -1.2, -0.8), (0, -0.4, 0.4)])
def test_reciprocity_is_symmetric_antisymmetric_or_neither(sign: int, least: float, most: float) -> None:
    dice = np.random.default_rng(7)
    a = dice.normal(size=(N, N))
    true = a + sign * a.T
    tables = [residuals(true + 0.5 * dice.normal(size=true.shape), OWN) for _ in range(3)]
    found = symmetry(tables, dice)
    assert found is not None
    assert least < found.reciprocity < most
    assert (found.p < 0.005) == (sign != 0)
    assert found.symmetric == pytest.approx((1 + found.reciprocity) / 2)


def test_symmetry_needs_a_square_table() -> None:
    dice = np.random.default_rng(8)
    assert symmetry([], dice) is None
    assert symmetry([np.ones((4, 5))] * 2, dice) is None
