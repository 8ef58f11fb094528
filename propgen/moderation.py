"""Moderation: variances of seeds, drawn together over cells, since a few seeds say little of one cell's own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from propgen.scores import Array, Mask, Scores, Seeds, deviations, ratio, seeds

FEWEST = 4
"""Variances from which a common one is estimated; fewer are not moderated."""


class Prior(NamedTuple):
    """A common variance and its degrees of freedom; none (0) where too few variances are there to tell."""

    variance: float
    df: float


def prior(variances: Array, df: Array, most: float) -> Prior:
    """Return the scaled inverse chi-square prior of sample variances (Smyth 2004, moments of their logarithms).

    df: of each variance. most: degrees of freedom that the prior can have, those of the data that it comes from.
    Variances of 0 count as tiny ones, as in limma.
    """
    seen = np.isfinite(variances) & (df > 0)
    s2, d = variances[seen], df[seen]
    if len(s2) < FEWEST or not (s2 > 0).any():
        return Prior(0.0, 0.0)
    s2 = np.maximum(s2, 1e-5 * np.median(s2[s2 > 0]))
    logs = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    spread = float(np.var(logs, ddof=1) - special.polygamma(1, d / 2).mean())
    d0 = min(2 * _inverse_trigamma(spread), most) if spread > 0 else most
    return Prior(float(np.exp(logs.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))), d0)


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton steps on 1 / trigamma, which is nearly linear (Smyth 2004)."""
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        tri = float(special.polygamma(1, x))
        step = tri * (1 - tri / value) / float(special.polygamma(2, x))
        x += step
        if -step < 1e-10 * x:
            break
    return x


def moderated(found: Seeds, scores: Scores, rows: Mask) -> tuple[Array, Array]:
    """Return the moderated variances of some treatments' arms and their degrees of freedom; others are NaN and 0."""
    df = np.where(rows[:, None], np.maximum(found.number - 1, 0), 0)
    common = _common(found, scores, rows)
    own = np.where(df > 0, np.nan_to_num(found.variance), 0)
    total = np.where(rows[:, None] & (found.number > 0), common.df + df, 0)
    return ratio(common.df * common.variance + df * own, total), total


def _common(found: Seeds, scores: Scores, rows: Mask) -> Prior:
    """Return the variance that some treatments' arms have in common."""
    df = np.where(rows[:, None], np.maximum(found.number - 1, 0), 0)
    return prior(found.variance, df, _independent(scores, rows) * df.max(axis=1, initial=0).sum())


def lent(scores: Scores, rows: Mask) -> float:
    """Return the degrees of freedom that some treatments' cells lend each other."""
    return float(_common(seeds(scores), scores, rows).df)


def _independent(scores: Scores, rows: Mask) -> float:
    """Return as how many independent columns the seeds' deviations of some treatments count.

    (trace C)^2 / trace C^2 of their correlations: one finetune moves many columns at once, so a variance that is
    pooled over columns knows less than their number says.
    """
    away = deviations(scores)[rows[scores.arm]]
    scale = np.sqrt((away**2).sum(axis=0))
    away = away[:, scale > 0] / scale[scale > 0]
    return float(away.shape[1] ** 2 / ((away.T @ away) ** 2).sum()) if away.size else 0.0
