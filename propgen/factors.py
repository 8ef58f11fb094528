"""Factors: how many independent directions the cross effects have, and what else there is to see in their pattern.

Everything is about residuals of the additive fit off the diagonal (`structure.residuals`): a finetune that moves
everything and an evaluation that everything moves are no relation between traits. Tables are rows x columns; `own`
marks the cells of a row's own trait, and NaN is a cell that is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.metrics import silhouette_score

from propgen.scores import Array, Mask, ratio
from propgen.structure import residuals

MOST = 8
"""Ranks above this are not looked for."""
FEWEST = 4
"""Rows and columns below which a table without its diagonal is almost all margins."""
NULLS, STEPS, LEVEL = 200, 40, 0.95
REPLICATES = 500


# -- low rank ------------------------------------------------------------------------------------------------------


def low_rank(table: Array, rank: int) -> Array:
    """Return the best rank-`rank` fit to a table with missing cells.

    By iterated singular value decompositions in which the fit fills the gaps (hard impute; Mazumder, Hastie &
    Tibshirani 2010).
    """
    seen = np.isfinite(table)
    filled = np.where(seen, table, 0.0)
    if rank == 0:
        return np.zeros(table.shape)
    fit = filled
    for _ in range(STEPS):
        u, s, v = np.linalg.svd(filled, full_matrices=False)
        fit = (u[:, :rank] * s[:rank]) @ v[:rank]
        change = np.where(seen, 0.0, fit - filled)
        filled = filled + change
        if np.abs(change).max(initial=0.0) < 1e-6 * max(s[0], 1e-300):
            break
    return fit


class Rank(NamedTuple):
    """How many components stand out from noise.

    singular: what each one reaches when those before it are taken off. null: what noise alone reaches in 95 of 100.
    """

    k: int
    singular: tuple[float, ...]
    null: float


def rank(effects: Array, own: Mask, variance: Array | None, dice: np.random.Generator) -> Rank | None:
    """Return how many components the double-centred off-diagonals have, None where the table is too small.

    Parallel analysis (Horn 1965): the null is noise with the variance of each effect (seeds and items), centred like
    the data. Components are taken off one by one, gaps imputed, each compared with what noise alone reaches. variance:
    of each effect, its squared standard error; None where nothing tells it, and the cells that are left are permuted
    instead, which takes their structure for noise and finds too few.
    """
    table = np.where(own, np.nan, effects)
    seen = np.isfinite(table) if variance is None else np.isfinite(table) & np.isfinite(variance)
    if min(table.shape) < FEWEST or seen.sum() < 2 * sum(table.shape):
        return None
    table = residuals(np.where(seen, table, np.nan), own)
    centre, found, null = _centring(seen), list[float](), 0.0
    if variance is not None:
        null = _reach((dice.normal(size=(NULLS, int(seen.sum()))) * np.sqrt(variance[seen])) @ centre.T, seen)
    for k in range(min(MOST, min(table.shape) - 2) + 1):
        rest = np.where(seen, table - low_rank(table, k), 0.0)
        if variance is None:
            null = _reach(dice.permuted(np.tile(rest[seen], (NULLS, 1)), axis=1) @ centre.T, seen)
        found.append(float(np.linalg.svd(rest, compute_uv=False)[0]))
        if found[-1] <= null:
            break
    return Rank(len(found) - 1, tuple(found), null)


def _reach(cells: Array, seen: Mask) -> float:
    """Return what the largest singular value of tables of noise exceeds in 5 of 100. cells: tables x observed cells."""
    tables = np.zeros((len(cells), *seen.shape))
    tables[:, seen] = cells
    return float(np.quantile(np.linalg.svd(tables, compute_uv=False)[:, 0], LEVEL))


def _centring(seen: Mask) -> Array:
    """Return the matrix that takes the observed cells of a table to their residuals."""
    rows, columns = np.nonzero(seen)
    design = np.zeros((len(rows), sum(seen.shape)))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), seen.shape[0] + columns] = 1
    return np.eye(len(rows)) - design @ np.linalg.pinv(design)


def left_out(pairs: Sequence[tuple[Array, Array]]) -> int | None:
    """Return the rank whose fit to one table predicts another one best, or the least within a standard error of it.

    pairs: residuals to fit, and residuals of a seed (and half of the items) that were left out of them.
    """
    if not pairs:
        return None
    errors = np.array([[_error(fit, score, k) for k in range(MOST + 1)] for fit, score in pairs])
    if not np.isfinite(errors).all():
        return None
    mean, best = errors.mean(axis=0), int(errors.mean(axis=0).argmin())
    slack = (errors - errors[:, [best]]).std(axis=0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else 0 * mean
    return int(np.flatnonzero(mean <= mean[best] + slack)[0])


def _error(fit: Array, score: Array, rank: int) -> float:
    both = np.isfinite(fit) & np.isfinite(score)
    if min(fit.shape) <= rank or not both.any():
        return float("nan")
    return float(((score - low_rank(fit, rank))[both] ** 2).mean())


# -- models of the off-diagonals -----------------------------------------------------------------------------------


class Fit(NamedTuple):
    """How well a model predicts cells that it has not seen: r2 against predicting 0, with its standard error."""

    model: str
    rmse: float
    r2: float
    r2_se: float


INDEPENDENT, ADDITIVE, GENERAL, LOW, VALENCE = (
    "independent traits",
    "additive only",
    "one general factor",
    "low rank",
    "valence only",
)
FOLDS, REPEATS = 6, 5


def compare(effects: Array, own: Mask, valence: Array | None, dice: np.random.Generator) -> list[Fit]:
    """Return how well models predict off-diagonal cells that were held out, over all seeds.

    independent traits: nothing moves. additive only: row and column. one general factor, low rank: and one component,
    or as many as predict best within the training cells. valence only: row, column, and whether both traits are
    socially good or both bad. valence: product of both traits' valences, rows x columns of +1, 0 and -1.
    """
    table = np.where(own, np.nan, effects)
    cells = np.argwhere(np.isfinite(table))
    if min(table.shape) < FEWEST or len(cells) < 3 * sum(table.shape):
        return []
    names = [INDEPENDENT, ADDITIVE, GENERAL, LOW] + ([VALENCE] if valence is not None and valence.any() else [])
    squares: dict[str, list[float]] = {name: [] for name in names}
    zero: list[float] = []
    for _ in range(REPEATS):
        for fold in np.array_split(dice.permutation(cells), FOLDS):
            held = np.zeros(table.shape, dtype=bool)
            held[tuple(fold.T)] = True
            train = np.where(held, np.nan, table)
            zero.append(float((table[held] ** 2).mean()))
            for name in names:
                squares[name].append(float(((table - _predict(name, train, valence, dice))[held] ** 2).mean()))
    total = float(np.mean(zero))
    return [_fit(name, np.array(values), np.array(zero), total) for name, values in squares.items()]


def _fit(name: str, squares: Array, zero: Array, total: float) -> Fit:
    if total == 0:
        return Fit(name, 0.0, float("nan"), float("nan"))
    # Folds share their training cells, so the error of their mean is that of FOLDS values, not of all repetitions.
    se = float((zero - squares).std(ddof=1) / np.sqrt(FOLDS) / total)
    return Fit(name, float(np.sqrt(squares.mean())), 1 - float(squares.mean()) / total, se)


def _predict(name: str, train: Array, valence: Array | None, dice: np.random.Generator) -> Array:
    if name == INDEPENDENT:
        return np.zeros(train.shape)
    margins = additive(train)
    rest = train - margins
    if name == ADDITIVE:
        return margins
    if name == VALENCE and valence is not None:
        seen = np.isfinite(rest) & (valence != 0)
        slope = float((rest[seen] * valence[seen]).sum() / max((valence[seen] ** 2).sum(), 1))
        return margins + slope * valence
    return margins + low_rank(rest, 1 if name == GENERAL else _chosen(train, dice))


def _chosen(train: Array, dice: np.random.Generator) -> int:
    """Return the rank that predicts cells best which are held out of the training cells once more."""
    cells = dice.permutation(np.argwhere(np.isfinite(train)))
    errors = np.zeros(MOST)
    for fold in np.array_split(cells, 3):
        inner = train.copy()
        inner[tuple(fold.T)] = np.nan
        margins = additive(inner)
        for k in range(MOST):
            gaps = (train - margins - low_rank(inner - margins, k))[tuple(fold.T)]
            errors[k] += float((gaps**2).sum())
    return int(errors.argmin())


def additive(table: Array) -> Array:
    """Return the additive fit to the cells that are there, in every cell: mean + row + column, by least squares."""
    seen = np.isfinite(table)
    rows, columns = np.nonzero(seen)
    design = np.zeros((len(rows), sum(table.shape)))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), table.shape[0] + columns] = 1
    found = np.linalg.lstsq(design, table[seen], rcond=None)[0]
    return found[: table.shape[0], None] + found[table.shape[0] :]


# -- loadings, clusters, co-movement -------------------------------------------------------------------------------


class Loadings(NamedTuple):
    """Loadings of columns on components (columns x k), with intervals of 95 % over resampled rows."""

    value: Array
    low: Array
    high: Array


def loadings(table: Array, k: int, dice: np.random.Generator) -> Loadings:
    """Return how evaluated traits load on the components of residuals, in the effects' unit.

    A column's loading is the standard deviation over rows of what the component contributes to it, with a sign; each
    component's largest loading is positive. Resamples of rows are turned onto the whole table's loadings (Procrustes).
    """
    value = _load(table, k)
    drawn: list[Array] = []
    for _ in range(REPLICATES if k else 0):
        again = _load(table[dice.integers(0, len(table), len(table))], k)
        u, _, v = np.linalg.svd(again.T @ value)
        drawn.append(again @ (u @ v))
    if not drawn:
        return Loadings(value, value, value)
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return Loadings(value, low, high)


def _load(table: Array, k: int) -> Array:
    seen = np.isfinite(table)
    _, s, v = np.linalg.svd(np.where(seen, table, low_rank(table, k)), full_matrices=False)
    found = v[:k].T * s[:k] / np.sqrt(len(table))
    peaks = found[np.abs(found).argmax(axis=0), np.arange(k)]
    return found * np.where(peaks < 0, -1.0, 1.0)


def comovement(scores: Array, own: Mask) -> Array:
    """Return correlations of evaluated traits across finetunes, columns x columns; own cells are left out.

    scores: seeds x rows x columns of effects. This is how traits move together, and no effect of one on another.
    """
    table = np.where(own, np.nan, scores).reshape(-1, scores.shape[-1])
    seen = np.isfinite(table).astype(float)
    filled = np.nan_to_num(table)
    n = seen.T @ seen
    sums, squares = filled.T @ seen, (filled**2).T @ seen
    spread = squares - ratio(sums**2, n)
    cross = filled.T @ filled - ratio(sums * sums.T, n)
    return np.where(n > 2, ratio(cross, np.sqrt(np.maximum(spread * spread.T, 0))), np.nan)


class Clusters(NamedTuple):
    """Groups of evaluated traits. order: of the leaves of the tree. together: share of resamples in one group."""

    labels: tuple[int, ...]
    order: tuple[int, ...]
    together: Array
    silhouette: float


def cluster(table: Array, dice: np.random.Generator) -> Clusters | None:
    """Return groups of columns whose residuals are alike over rows: average linkage on 1 - correlation.

    As many groups as have the best silhouette; stability is how often two columns share a group when rows are drawn
    again. None where columns cannot be compared.
    """
    found = _distances(table)
    if found is None or len(found) < FEWEST:
        return None
    tree = hierarchy.linkage(squareform(found, checks=False), "average")
    sizes = range(2, min(len(found) - 1, 6) + 1)
    cuts = {size: hierarchy.fcluster(tree, size, "maxclust") for size in sizes}
    worth = {n: _silhouette(found, labels) for n, labels in cuts.items()}
    count = max(worth, key=lambda n: worth[n])
    together, drawn = np.zeros(found.shape), 0
    for _ in range(REPLICATES):
        again = _distances(table[dice.integers(0, len(table), len(table))])
        if again is not None:
            labels = hierarchy.fcluster(
                hierarchy.linkage(squareform(again, checks=False), "average"), count, "maxclust"
            )
            together += labels[:, None] == labels
            drawn += 1
    labels = tuple(int(label) for label in cuts[count])
    order = tuple(int(leaf) for leaf in hierarchy.leaves_list(tree))
    return Clusters(labels, order, together / max(drawn, 1), worth[count])


def _distances(table: Array) -> Array | None:
    found = 1 - comovement(table[None], np.zeros(table.shape, dtype=bool))
    if not np.isfinite(found).all():
        return None
    np.fill_diagonal(found, 0.0)
    return np.maximum(found, 0)


def _silhouette(distances: Array, labels: Array) -> float:
    if not 1 < len(np.unique(labels)) < len(labels):
        return -1.0
    return float(silhouette_score(distances, labels, metric="precomputed"))


# -- symmetry ------------------------------------------------------------------------------------------------------


class Symmetry(NamedTuple):
    """Whether i moves j as much as j moves i. reciprocity: correlation of residuals ij and ji, noise taken out.

    symmetric: share of the residuals' variance that is symmetric. p: of the reciprocity, by permutation.
    """

    reciprocity: float
    symmetric: float
    p: float


def symmetry(tables: Sequence[Array], dice: np.random.Generator) -> Symmetry | None:
    """Return the symmetry of square residuals whose rows and columns are the same traits in the same order.

    tables: residuals of independent measurements (seeds, with other halves of the items), whose noise cancels in
    products of two different ones; of a single one noise is not taken out, and weakens the reciprocity. Doses and units
    make raw effects asymmetric, which is why only residuals of the additive fit are compared (quasi-symmetry; Caussinus
    1965). p: traits of one copy permuted, rows and columns together (QAP; Krackhardt 1988).
    """
    if not tables or tables[0].shape[0] != tables[0].shape[1] or len(tables[0]) < FEWEST:
        return None
    pairs = [(a, b) for i, a in enumerate(tables) for j, b in enumerate(tables) if i != j or len(tables) == 1]
    across = float(np.mean([_product(a, b.T) for a, b in pairs]))
    total = float(np.mean([_product(a, b) for a, b in pairs]))
    if not total > 0:
        return Symmetry(float("nan"), float("nan"), float("nan"))
    mean = np.mean(np.stack(tables), axis=0)
    seen = _product(mean, mean.T)
    orders = (dice.permutation(len(mean)) for _ in range(4 * REPLICATES))
    null = [_product(mean, mean.T[np.ix_(order, order)]) for order in orders]
    p = (1 + sum(abs(value) >= abs(seen) for value in null)) / (1 + len(null))
    return Symmetry(across / total, (1 + across / total) / 2, p)


def _product(a: Array, b: Array) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float((a[both] * b[both]).mean()) if both.any() else 0.0
