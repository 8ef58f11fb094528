"""Multiplicity: what can be said when many cells are tested at once."""

from __future__ import annotations

import numpy as np
from scipy import stats

from propgen.inference import Effects
from propgen.moderation import FEWEST
from propgen.scores import Array, Mask, ratio


def adjusted(p: Array, method: str) -> Array:
    """Return adjusted p-values of the finite ones. method: `bh` (Benjamini & Hochberg 1995) or `holm` (Holm 1979)."""
    seen = np.isfinite(p)
    found = np.full(p.shape, np.nan)
    if not seen.any():
        return found
    if method == "bh":
        found[seen] = stats.false_discovery_control(p[seen])
        return found
    values = p[seen]
    order = np.argsort(values)
    steps = np.maximum.accumulate((len(values) - np.arange(len(values))) * values[order])
    ranked = np.empty(len(values))
    ranked[order] = np.minimum(steps, 1)
    found[seen] = ranked
    return found


def selected_intervals(found: Effects, q: Array, alpha: float) -> tuple[Array, Array]:
    """Return intervals for the cells with q <= alpha whose false coverage rate is alpha (Benjamini & Yekutieli 2005).

    Their level is 1 - R alpha / m for R selected of m tested cells; NaN for cells that were not selected.
    """
    selected = q <= alpha
    tested = np.isfinite(q).sum()
    share = alpha * selected.sum() / tested if tested else alpha
    half = stats.t.ppf(1 - share / 2, np.where(selected, found.df, np.nan)) * found.se
    return found.effect - half, found.effect + half


def shrunken(effect: Array, se: Array, cells: Mask) -> Array:
    """Return effects drawn together, against the winner's curse: m + (x - m) t2 / (t2 + se^2).

    m: their precision-weighted mean. t2: how much true effects vary, by moments (DerSimonian & Laird 1986). cells:
    which ones belong together; the others are NaN. Empirical Bayes as in Efron & Morris (1973).
    """
    seen = cells & np.isfinite(effect) & (se > 0)
    result = np.full(effect.shape, np.nan)
    if seen.sum() < FEWEST:
        return result
    x, v = effect[seen], se[seen] ** 2
    w = 1 / v
    center = (w * x).sum() / w.sum()
    spread = (w * (x - center) ** 2).sum() - (len(x) - 1)
    t2 = max(0.0, float(spread / (w.sum() - (w**2).sum() / w.sum())))
    w = 1 / (v + t2)
    center = (w * x).sum() / w.sum()
    result[seen] = center + (x - center) * t2 / (t2 + v)
    return result


def equivalence(found: Effects, smallest: float) -> Array:
    """Return p of two one-sided tests: small where an effect is shown to be within +-smallest (Schuirmann 1987)."""
    tested = np.isfinite(found.p)
    t = ratio(smallest - np.abs(found.effect), np.where(tested, found.se, 0))
    return stats.t.sf(t, found.test_df)
