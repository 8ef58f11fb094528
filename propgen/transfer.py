"""Transfer: how much of a treatment's own effect spills over to the other traits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from propgen.inference import Effects, satterthwaite
from propgen.scores import Array, Index, Scores, deviations, ratio


class Transfer(NamedTuple):
    """tau = effect / own effect, with Fieller's confidence set; an unbounded set runs from -inf to inf."""

    tau: Array
    low: Array
    high: Array


def transfer(scores: Scores, found: Effects, own: Index, level: float) -> Transfer:
    """Return tau = effect / own effect with the confidence sets of Fieller (1954).

    own: column of each treatment's own trait, -1 for none. The two effects share seeds, so their covariance is that of
    the seeds' means, scaled like their moderated variances; their items are different ones. On the diagonal tau is 1 by
    definition and has no interval.
    """
    rows = np.arange(len(scores.treatments))
    has = (own >= 0)[:, None]
    over, under = found.effect, np.where(has, found.effect[rows, own][:, None], np.nan)
    tau = np.where(under == 0, np.nan, np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0))
    variance = found.terms.variance
    t = found.terms
    parts = [t.treated, t.control, t.items]
    theirs = [np.broadcast_to(part[rows, own][:, None], over.shape) for part in parts]
    dfs = [t.treated_df, t.control_df, t.items_df]
    their_dfs = [np.broadcast_to(df[rows, own][:, None], over.shape) for df in dfs]
    df = satterthwaite(np.stack([*parts, *theirs]), np.stack([*dfs, *their_dfs]))
    shared = _covariance(scores, found, own)
    low, high = fieller(
        over, under, variance, np.broadcast_to(variance[rows, own][:, None], over.shape), shared, df, level
    )
    diagonal = np.arange(len(scores.columns)) == own[:, None]
    tau = np.where(diagonal & np.isfinite(tau), 1.0, tau)
    return Transfer(tau, *(np.where(diagonal | ~has, np.nan, bound) for bound in (low, high)))


def _covariance(scores: Scores, found: Effects, own: Index) -> Array:
    """Return the covariance of each effect with the own effect of its row, from the seeds that both arms share."""
    away = deviations(scores)
    subjects = np.arange(len(away))
    raw = scores.members @ (away * away[subjects, own[scores.arm]][:, None])
    squares = scores.members @ away**2
    rows = np.arange(len(own))

    def correlation(products: Array, ours: Array, theirs: Array) -> Array:
        return np.nan_to_num(ratio(products, np.sqrt(ours * theirs)))

    t = found.terms
    ours = correlation(raw, squares, squares[rows, own][:, None])
    ours = np.where(found.seeds > 1, ours, 0) * np.sqrt(t.treated * t.treated[rows, own][:, None])
    against = scores.reference
    arm = np.stack([scores.members[i] for i in against])
    products = np.einsum("is,sj,si->ij", arm, away, away[:, own])
    theirs = correlation(products, squares[against], squares[against, own][:, None])
    theirs = np.where(found.controls > 1, theirs, 0) * np.sqrt(t.control * t.control[rows, own][:, None])
    return np.nan_to_num(ours) + np.nan_to_num(theirs)


def fieller(
    over: Array, under: Array, variance_over: Array, variance_under: Array, covariance: Array, df: Array, level: float
) -> tuple[Array, Array]:
    """Return the confidence sets of over / under: the ratios r for which over - r * under is not far from 0.

    Where `under` is not clearly different from 0 the set is unbounded: (-inf, inf).
    """
    t2 = stats.t.ppf((1 + level) / 2, df) ** 2
    a = under**2 - t2 * variance_under
    b = over * under - t2 * covariance
    c = over**2 - t2 * variance_over
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))  # below 0 by rounding alone: the ratio itself is in the set
    bounded = np.where(np.isfinite(a + b + c), a, np.nan)
    low, high = ratio(b - root, np.maximum(a, 0)), ratio(b + root, np.maximum(a, 0))
    return np.where(bounded <= 0, -np.inf, low), np.where(bounded <= 0, np.inf, high)
