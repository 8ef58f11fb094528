"""Inference: effects of all cells of a view at once, with errors, intervals and tests for new seeds and new items.

    V = s2_T / T + s2_C / C + S2 / F

s2_T, s2_C: variances of the seeds' mean scores in the treated and the control arm, moderated over the view's cells. S2:
variance over the F item families of the seed-averaged treated - control difference. Items and seeds are crossed random
factors (Clark 1973); every finetune answers the same items, so that what items have in common cancels (paired design).

Arrays are treatments x columns unless said otherwise, with NaN where something cannot be estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Index = NDArray[np.intp]
POWER = 0.8
ALPHA = 0.05
FEWEST = 4
"""Variances from which a common one is estimated; fewer are not moderated."""


@dataclass(frozen=True)
class Scores:
    """A base model's scores under the evaluations of a view (protocol and context), its columns.

    arm: treatment of each subject, as a place in `treatments`. values: of each column, subjects x items, NaN where an
    item was not scored. families: of each column, a number for each item. reference: of each treatment, the one that it
    is compared with, -1 for none. fixed: of each treatment, whether it is no sample of seeds (the base model).
    """

    treatments: tuple[str, ...]
    columns: tuple[str, ...]
    arm: Index
    values: tuple[Array, ...]
    families: tuple[Index, ...]
    reference: Index
    fixed: NDArray[np.bool_]

    @cached_property
    def members(self) -> Array:
        """Which subjects belong to a treatment: treatments x subjects of 0 and 1."""
        return (np.arange(len(self.treatments))[:, None] == self.arm).astype(float)

    @cached_property
    def means(self) -> Array:
        """Mean score of each subject over the items that it scored: subjects x columns."""
        return np.column_stack([means(values, axis=1) for values in self.values])


def means(scores: Array, axis: int) -> Array:
    """Return the mean over what is there; NaN where nothing is."""
    counts = np.isfinite(scores).sum(axis=axis)
    return _ratio(np.nansum(scores, axis=axis), counts)


def _ratio(over: Array, under: NDArray[np.generic]) -> Array:
    """Return over / under, NaN where `under` is not above 0."""
    return np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0)  # type: ignore[operator]


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


# -- seeds ---------------------------------------------------------------------------------------------------------


class Seeds(NamedTuple):
    """Seeds that scored something, the mean of their means, and the variance of these (NaN for one seed)."""

    number: Array
    mean: Array
    variance: Array


def seeds(scores: Scores) -> Seeds:
    """Return what each arm's seeds say."""
    seen = np.isfinite(scores.means)
    count = scores.members @ seen
    mean = _ratio(scores.members @ np.where(seen, scores.means, 0), count)
    squares = scores.members @ deviations(scores) ** 2
    return Seeds(count, mean, _ratio(squares, count - 1))


def deviations(scores: Scores) -> Array:
    """Return how far each subject is from its treatment's mean, subjects x columns; 0 where it scored nothing."""
    seen = np.isfinite(scores.means)
    values = np.where(seen, scores.means, 0)
    mean = _ratio(scores.members @ values, scores.members @ seen)
    return np.where(seen, values - np.nan_to_num(mean[scores.arm]), 0)


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


def _moderated(found: Seeds, scores: Scores, rows: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return the moderated variances of some treatments' arms and their degrees of freedom; others are NaN and 0."""
    df = np.where(rows[:, None], np.maximum(found.number - 1, 0), 0)
    common = _common(found, scores, rows)
    own = np.where(df > 0, np.nan_to_num(found.variance), 0)
    total = np.where(rows[:, None] & (found.number > 0), common.df + df, 0)
    return _ratio(common.df * common.variance + df * own, total), total


def _common(found: Seeds, scores: Scores, rows: NDArray[np.bool_]) -> Prior:
    """Return the variance that some treatments' arms have in common."""
    df = np.where(rows[:, None], np.maximum(found.number - 1, 0), 0)
    return prior(found.variance, df, _independent(scores, rows) * df.max(axis=1, initial=0).sum())


def lent(scores: Scores, rows: NDArray[np.bool_]) -> float:
    """Return the degrees of freedom that some treatments' cells lend each other."""
    return float(_common(seeds(scores), scores, rows).df)


def _independent(scores: Scores, rows: NDArray[np.bool_]) -> float:
    """Return as how many independent columns the seeds' deviations of some treatments count.

    (trace C)^2 / trace C^2 of their correlations: one finetune moves many columns at once, so a variance that is
    pooled over columns knows less than their number says.
    """
    away = deviations(scores)[rows[scores.arm]]
    scale = np.sqrt((away**2).sum(axis=0))
    away = away[:, scale > 0] / scale[scale > 0]
    return float(away.shape[1] ** 2 / ((away.T @ away) ** 2).sum()) if away.size else 0.0


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
    found = _ratio(scores.members @ np.where(seen, values, 0), scores.members @ seen)
    gaps = found - found[scores.reference]
    names, place = np.unique(families, return_inverse=True)
    belongs = (place[:, None] == np.arange(len(names))).astype(float)
    counts = np.isfinite(gaps) @ belongs
    sums = np.nan_to_num(gaps) @ belongs
    total = counts.sum(axis=1, keepdims=True)
    shares = np.nan_to_num(_ratio(sums - counts * _ratio(sums.sum(axis=1, keepdims=True), total), total))
    number = (counts > 0).sum(axis=1).astype(float)
    return number * _ratio((shares**2).sum(axis=1), number - 1), number - 1


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
    p = 2 * stats.t.sf(np.abs(_ratio(difference, np.where(tested, se, 0))), test_df)
    controls = np.where(scores.fixed[against][:, None], 0, found.number[against])
    mde = se * detectable(np.where(tested, df, np.nan), test_df)
    return Effects(
        difference, se, difference - half, difference + half, df, test_df, p, mde, found.number, controls, terms
    )


def _terms(scores: Scores, found: Seeds, new_items: bool) -> Terms:
    against = scores.reference
    controls = np.zeros(len(scores.treatments), dtype=bool)
    controls[against[against >= 0]] = True
    treated = _moderated(found, scores, (against >= 0) & ~scores.fixed & ~controls)
    neutral = _moderated(found, scores, controls & ~scores.fixed)
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
    one = _ratio(ours, found.number)
    other = np.where(fixed, 0.0, _ratio(theirs, found.number[against]))
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


# -- transfer ------------------------------------------------------------------------------------------------------


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
        return np.nan_to_num(_ratio(products, np.sqrt(ours * theirs)))

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
    low, high = _ratio(b - root, np.maximum(a, 0)), _ratio(b + root, np.maximum(a, 0))
    return np.where(bounded <= 0, -np.inf, low), np.where(bounded <= 0, np.inf, high)


# -- many cells ----------------------------------------------------------------------------------------------------


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


def shrunken(effect: Array, se: Array, cells: NDArray[np.bool_]) -> Array:
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
    t = _ratio(smallest - np.abs(found.effect), np.where(tested, found.se, 0))
    return stats.t.sf(t, found.test_df)
