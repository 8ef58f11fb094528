"""Inference: an effect's standard error, interval, test and smallest detectable size, for new seeds and new items.

    V = s2_T / T + s2_C / C + S2 / F

s2_T, s2_C: variances of the seeds' mean scores in the treated and the control arm. S2: variance over the F item
families of the seed-averaged treated - control difference. Items and seeds are crossed random factors (Clark 1973);
every finetune answers the same items, so that what items have in common cancels (paired design).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from propgen.plan import BASE, Cell

POWER = 0.8
ALPHA = 0.05


@dataclass(frozen=True)
class Arm:
    """All seeds of a treatment (or control, or the base) under one evaluation.

    scores: seeds x items, NaN where an item could not be scored; every seed scored one at least, so that a finetune
    which answered nothing is no seed. families: of the items.
    """

    cell: Cell
    seeds: tuple[int, ...]
    scores: NDArray[np.float64]
    families: Sequence[str]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean score of each seed over the items that it scored."""
        return means(self.scores, axis=1)

    @property
    def item_means(self) -> NDArray[np.float64]:
        """Mean score of each item over the seeds that scored it; NaN where none did."""
        return means(self.scores, axis=0)


def means(scores: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the mean over what is there; NaN where nothing is."""
    counts = np.isfinite(scores).sum(axis=axis)
    return np.divide(np.nansum(scores, axis=axis), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


@dataclass(frozen=True)
class Effect:
    """A difference of two arms in score units. None: not estimable with these seeds.

    mde: smallest effect that the test behind `p` finds with power .8; None where there is no test.
    """

    effect: float | None
    se: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    mde: float | None


NO_EFFECT = Effect(None, None, None, None, None, None)


class Transfer(NamedTuple):
    """tau = effect / own effect, with Fieller's confidence set; an unbounded set runs from -inf to inf."""

    tau: float | None
    low: float | None
    high: float | None


NO_TRANSFER = Transfer(None, None, None)


def effect(treated: Arm, control: Arm, level: float) -> Effect:
    """Return treated - control with a Satterthwaite t interval and a t test.

    An arm with one seed borrows the other arm's seed variance (Crawford & Howell 1998): its interval is exploratory and
    it gets no p-value. With one seed in both arms there is no interval. The base model has no seeds: its arm counts as
    fixed. The test uses df = min(T, C, F) - 1, since Satterthwaite's is liberal in the tail. An arm without seeds gives
    no effect.
    """
    if not (treated.seeds and control.seeds):
        return NO_EFFECT
    difference = float(treated.means.mean() - control.means.mean())
    parts = _variances(treated, control)
    if parts is None:
        return Effect(difference, None, None, None, None, None)
    variance = sum(part.variance for part in parts)
    se = float(np.sqrt(variance))
    df = satterthwaite(parts)
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    tested = all(len(arm.seeds) > 1 or _is_base(arm) for arm in (treated, control))
    if not tested or se == 0:
        return Effect(difference, se, difference - half, difference + half, None, None)
    test_df = min(part.df for part in parts)
    p = float(2 * stats.t.sf(abs(difference) / se, test_df))
    return Effect(difference, se, difference - half, difference + half, p, se * detectable(round(df, 2), test_df))


class Part(NamedTuple):
    """One term of the variance of an effect, with its degrees of freedom."""

    variance: float
    df: int


def _variances(treated: Arm, control: Arm) -> list[Part] | None:
    """Return the terms of V; None if neither arm tells how much seeds vary, or there is one item family.

    With a borrowed variance both arms' terms are one estimate, and so one part: s2 (1 + 1/C) with C - 1 df.
    """
    arms = [arm for arm in (treated, control) if not _is_base(arm)]
    parts = [Part(_seed_variance(arm) / len(arm.seeds), len(arm.seeds) - 1) for arm in arms if len(arm.seeds) > 1]
    families = family_variance(treated, control)
    if not parts or families is None:
        return None
    if len(parts) < len(arms):
        lender = parts[0]
        parts = [Part(lender.variance * (lender.df + 2), lender.df)]
    return [*parts, families]


def _seed_variance(arm: Arm) -> float:
    return float(np.var(arm.means, ddof=1))


def family_variance(treated: Arm, control: Arm) -> Part | None:
    """Return the variance of the mean difference that comes from the choice of item families.

    Families weigh by their number of items, as in the mean over items: F/(F-1) * sum (w_f (D_f - D))^2 with weights
    that sum to 1, which is S2/F for families of equal size (the ratio estimator of cluster sampling; Cochran 1977).
    """
    gaps = treated.item_means - control.item_means
    names, index = np.unique(np.asarray(treated.families), return_inverse=True)
    scored = ~np.isnan(gaps)
    counts = np.bincount(index[scored], minlength=len(names))
    sums = np.bincount(index[scored], weights=gaps[scored], minlength=len(names))
    counts, sums = counts[counts > 0], sums[counts > 0]
    families = len(counts)
    if families < 2:
        return None
    center = sums.sum() / counts.sum()
    shares = (sums - counts * center) / counts.sum()
    return Part(float(families / (families - 1) * np.sum(shares**2)), families - 1)


def satterthwaite(parts: Sequence[Part]) -> float:
    """Return the degrees of freedom of a sum of independent variance estimates (Satterthwaite 1946)."""
    total = sum(part.variance for part in parts)
    weight = sum(part.variance**2 / part.df for part in parts)
    return total**2 / weight if weight > 0 else float(min(part.df for part in parts))


@lru_cache(maxsize=4096)
def detectable(df: float, test_df: float) -> float:
    """Return the smallest effect, in standard errors, that a two-sided t test at .05 finds with power .8.

    From the noncentral t distribution with the standard error's df; the critical value is that of the test, whose df
    may be fewer. Uncorrected for the number of cells.
    """
    critical = float(stats.t.ppf(1 - ALPHA / 2, test_df))

    def shortfall(size: float) -> float:
        return float(stats.nct.sf(critical, df, size)) - POWER  # the other tail adds less than 1e-6 near the root

    # Twice the critical value has power above .8 for every df from 1 on; far beyond it scipy's tail is NaN.
    return float(optimize.brentq(shortfall, 0.0, 2 * critical, xtol=1e-4))  # type: ignore[arg-type]


def transfer(arms: tuple[Arm, Arm], own: tuple[Arm, Arm], level: float) -> Transfer:
    """Return tau = effect / own effect with the confidence set of Fieller (1954).

    The two effects share seeds, so their covariance comes from the seeds' means; their items are different ones. On the
    diagonal tau is 1 by definition and has no interval.
    """
    over, under = effect(*arms, level), effect(*own, level)
    if over.effect is None or under.effect is None:
        return NO_TRANSFER
    if arms[0].cell.evaluation.name == own[0].cell.evaluation.name:
        return Transfer(1.0 if under.effect else None, None, None)
    tau = over.effect / under.effect if under.effect else None
    if over.se is None or under.se is None:
        return Transfer(tau, None, None)
    covariance = sum(_covariance(ours, theirs) for ours, theirs in zip(arms, own, strict=True))
    df = satterthwaite([*(_variances(*arms) or []), *(_variances(*own) or [])])
    low, high = fieller(over.effect, under.effect, over.se**2, under.se**2, covariance, df, level)
    return Transfer(tau, low, high)


def fieller(
    over: float, under: float, variance_over: float, variance_under: float, covariance: float, df: float, level: float
) -> tuple[float, float]:
    """Return the confidence set of over / under: the ratios r for which over - r * under is not far from 0.

    If `under` is not clearly different from 0 the set is unbounded: (-inf, inf).
    """
    t2 = float(stats.t.ppf((1 + level) / 2, df)) ** 2
    a = under**2 - t2 * variance_under
    b = over * under - t2 * covariance
    c = over**2 - t2 * variance_over
    if a <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(b**2 - a * c, 0.0))  # below 0 by rounding alone: the ratio itself is in the set
    return float((b - root) / a), float((b + root) / a)


def _covariance(ours: Arm, theirs: Arm) -> float:
    """Covariance of two evaluations' arm means over their shared seeds; 0 where one seed says nothing of it."""
    if len(ours.seeds) < 2 or ours.seeds != theirs.seeds:
        return 0.0
    return float(np.cov(ours.means, theirs.means)[0, 1]) / len(ours.seeds)


def false_discovery(p: Sequence[float]) -> list[float]:
    """Return Benjamini-Hochberg adjusted p-values."""
    return [float(q) for q in stats.false_discovery_control(list(p))]


def _is_base(arm: Arm) -> bool:
    return arm.cell.subject.treatment == BASE
