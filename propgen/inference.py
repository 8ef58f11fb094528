"""Inference: effects of all cells of a view at once, with errors, intervals and tests for new seeds and new items.

    V = s2_T / T + s2_C / C + S2 / F

s2_T, s2_C: variances of the seeds' mean scores in the treated and the control arm, moderated over the view's cells. S2:
variance over the F item families of the seed-averaged treated - control difference. Items and seeds are crossed random
factors (Clark 1973); every finetune answers the same items, so that what items have in common cancels (paired design).

Arrays are treatments x columns unless said otherwise, with NaN where something cannot be estimated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from propgen.moderation import moderated
from propgen.scores import Array, Index, Scores, Seeds, ratio, seeds

POWER = 0.8
ALPHA = 0.05


class Effects(NamedTuple):
    """Differences of treatments from their references, in score units.

    test_df: degrees of freedom of the test behind p. mde: smallest effect which that test finds with power .8. tested:
    whether there is a test.
    """

    effect: Array
    se: Array
    low: Array
    high: Array
    df: Array
    test_df: Array
    p: Array
    mde: Array
    seeds: Array
    controls: Array
    terms: Terms


class Terms(NamedTuple):
    """The terms of V with their degrees of freedom; 0 and infinity for what is fixed."""

    treated: Array
    control: Array
    items: Array
    treated_df: Array
    control_df: Array
    items_df: Array

    @property
    def variance(self) -> Array:
        """V."""
        return self.treated + self.control + self.items

    @property
    def df(self) -> Array:
        """Degrees of freedom of V (Satterthwaite 1946)."""
        return satterthwaite(
            np.stack([self.treated, self.control, self.items]),
            np.stack([self.treated_df, self.control_df, self.items_df]),
        )

    @property
    def fewest(self) -> Array:
        """Degrees of freedom of the scarcest term."""
        return np.minimum(np.minimum(self.treated_df, self.control_df), self.items_df)


def satterthwaite(variances: Array, df: Array) -> Array:
    """Return the degrees of freedom of sums of independent variances, terms x ...; the fewest where all are 0."""
    weight = (variances**2 / df).sum(axis=0)
    total = variances.sum(axis=0) ** 2
    return np.where(weight > 0, np.divide(total, weight, out=np.full(total.shape, np.inf), where=weight > 0), df.min(0))


# -- items ---------------------------------------------------------------------------------------------------------


def item_terms(scores: Scores) -> tuple[Array, Array]:
    """Return the variance of each mean difference that comes from the choice of families, and its degrees of freedom.

    Families weigh by their number of items, as in the mean over items: F/(F-1) * sum (w_f (D_f - D))^2 with weights
    that sum to 1, which is S2/F for families of equal size (the ratio estimator of cluster sampling; Cochran 1977).
    """
    columns = [
        _item_term(scores, values, families) for values, families in zip(scores.values, scores.families, strict=True)
    ]
    return np.column_stack([c[0] for c in columns]), np.column_stack([c[1] for c in columns])


def _item_term(scores: Scores, values: Array, families: Index) -> tuple[Array, Array]:
    seen = np.isfinite(values)
    found = ratio(scores.members @ np.where(seen, values, 0), scores.members @ seen)
    gaps = found - found[scores.reference]
    names, place = np.unique(families, return_inverse=True)
    belongs = (place[:, None] == np.arange(len(names))).astype(float)
    counts = np.isfinite(gaps) @ belongs
    sums = np.nan_to_num(gaps) @ belongs
    total = counts.sum(axis=1, keepdims=True)
    shares = np.nan_to_num(ratio(sums - counts * ratio(sums.sum(axis=1, keepdims=True), total), total))
    number = (counts > 0).sum(axis=1).astype(float)
    return number * ratio((shares**2).sum(axis=1), number - 1), number - 1


# -- effects -------------------------------------------------------------------------------------------------------


def effects(scores: Scores, level: float, *, new_items: bool = True) -> Effects:
    """Return each treatment's difference from its reference, with Satterthwaite t intervals and t tests.

    new_items: False for the items as they are, which leaves the item term out. An arm with one seed borrows the other
    arm's variance (Crawford & Howell 1998): its interval is exploratory and it gets no p. With one seed in both arms
    there is no interval. A fixed reference adds no variance. The test has the degrees of freedom of the scarcest term,
    since Satterthwaite's are liberal in the tail.
    """
    found, against = seeds(scores), scores.reference
    difference = np.where(against[:, None] >= 0, found.mean - found.mean[against], np.nan)
    terms = _terms(scores, found, new_items)
    se, df = np.sqrt(terms.variance), terms.df
    half = stats.t.ppf((1 + level) / 2, np.where(df > 0, df, np.nan)) * se
    many = (found.number > 1) & ((found.number[against] > 1) | scores.fixed[against][:, None])
    tested = many & (se > 0) & np.isfinite(difference)
    test_df = np.where(tested, terms.fewest, np.nan)
    p = 2 * stats.t.sf(np.abs(ratio(difference, np.where(tested, se, 0))), test_df)
    controls = np.where(scores.fixed[against][:, None], 0, found.number[against])
    mde = se * detectable(np.where(tested, df, np.nan), test_df)
    return Effects(
        difference, se, difference - half, difference + half, df, test_df, p, mde, found.number, controls, terms
    )


def _terms(scores: Scores, found: Seeds, new_items: bool) -> Terms:
    against = scores.reference
    controls = np.zeros(len(scores.treatments), dtype=bool)
    controls[against[against >= 0]] = True
    treated = moderated(found, scores, (against >= 0) & ~scores.fixed & ~controls)
    neutral = moderated(found, scores, controls & ~scores.fixed)
    variance = np.where(controls[:, None], neutral[0], treated[0])
    df = np.where(controls[:, None], neutral[1], treated[1])
    arms = [np.where(df > 0, variance, np.nan), df]
    ours, ours_df = arms
    theirs, theirs_df = ours[against], df[against]
    fixed = np.broadcast_to(scores.fixed[against][:, None], ours.shape)
    lone, alone = found.number < 2, found.number[against] < 2  # their variance is the other arm's
    ours, ours_df = np.where(lone & ~fixed, theirs, ours), np.where(lone & ~fixed, theirs_df, ours_df)
    theirs, theirs_df = np.where(alone & ~fixed, ours, theirs), np.where(alone & ~fixed, ours_df, theirs_df)
    items, items_df = item_terms(scores)
    if not new_items:
        items, items_df = np.zeros_like(items), np.full_like(items_df, np.inf)
    one = ratio(ours, found.number)
    other = np.where(fixed, 0.0, ratio(theirs, found.number[against]))
    borrowed = (lone | alone) & ~fixed  # both terms are one estimate, and so one part
    one, other = np.where(borrowed, one + other, one), np.where(borrowed, 0.0, other)
    return Terms(
        one,
        other,
        items,
        np.where(ours_df > 0, ours_df, np.nan),
        np.where(fixed | borrowed, np.inf, np.where(theirs_df > 0, theirs_df, np.nan)),
        np.where(items_df > 0, items_df, np.nan),
    )


def critical(df: Array, alpha: float) -> Array:
    """Return critical values of two-sided t tests; NaN where there is no test."""
    return stats.t.ppf(1 - alpha / 2, df)


def detectable(df: Array, test_df: Array, alpha: float = ALPHA, power: float = POWER) -> Array:
    """Return the smallest effects, in standard errors, that two-sided t tests find.

    From the noncentral t distribution with the standard error's df; the critical value is that of the test, whose df
    may be fewer. By bisection: twice the critical value has enough power for every df from 1 on, and scipy's tail is
    NaN far beyond it. The other tail adds less than 1e-6 near the root.
    """
    pairs = np.round(np.stack([np.asarray(df, dtype=float), np.asarray(test_df, dtype=float)]).reshape(2, -1), 1)
    seen = np.isfinite(pairs[0]) | np.isinf(pairs[0])
    unique, back = np.unique(np.nan_to_num(np.minimum(pairs, 1e6), nan=-1), axis=1, return_inverse=True)
    known = unique.min(axis=0) > 0
    critical = stats.t.ppf(1 - alpha / 2, np.where(known, unique[1], np.nan))
    low, high = np.zeros(len(critical)), 2 * critical
    for _ in range(24):
        middle = (low + high) / 2
        enough = stats.nct.sf(critical, np.where(known, unique[0], np.nan), middle) > power
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(seen, high[back.reshape(-1)], np.nan).reshape(np.shape(df))
