"""Structure: what of an experiment's cross effects is more than how strong a row and how movable a column is.

The off-diagonal effects of a base model, a protocol and a context are split additively,

    effect_ij = grand mean + row_i + column_j + residual_ij,

by least squares over the observed cells; the diagonal is left out, since a trait's own effect would inflate it. A
finetune that moves everything has a large row and what everything moves has a large column, so which traits go together
shows in the residuals alone (double-centring). Intervals resample rows and columns independently (pigeonhole
bootstrap; Owen 2007), which treats the traits as a sample of traits and is conservative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from propgen.scores import means as mean_of
from propgen.tables import AGREEMENT, CONTROLS, check

Array = NDArray[np.float64]
REPLICATES = 2000
FEWEST = 4
"""Rows and columns below which residuals say nothing: a 3 x 3 table without its diagonal is almost all margins."""
VIEW = ("model", "protocol", "context")


@dataclass(frozen=True)
class Grid:
    """Mean scores of a view's treatments: seeds x treatments x evaluated traits x 2 halves of the item families.

    own: treatments x traits, True where the trait is the trained one. NaN where a cell is missing.
    """

    treatments: tuple[str, ...]
    traits: tuple[str, ...]
    scores: Array
    own: NDArray[np.bool_]

    @property
    def means(self) -> Array:
        """Mean scores, seeds x treatments x traits."""
        return self.scores.mean(axis=-1)


def agreement(items: pl.DataFrame) -> pl.DataFrame:
    """Return how far seeds agree on the residuals, a row per base model, protocol and context.

    r: mean correlation of two seeds that answered the same items. r_split: of two seeds of which one is scored on one
    half of the item families and one on the other, so that no shared item can make them agree. reliability: that of the
    mean over all seeds and items, from r_split by Spearman-Brown with factor 2 x seeds. Intervals of 95 % for other
    traits. Views with fewer than 4 rows or columns or with one seed have none of them.
    """
    rows = [_agreement_row(key, grid) for key, grid in grids(_treated(items)).items()]
    return check(pl.DataFrame(rows, schema=AGREEMENT, orient="row"), AGREEMENT, "agreement.parquet")


def controls(items: pl.DataFrame) -> pl.DataFrame:
    """Return what each control leaves in the off-diagonal effects, a row per view and control.

    shift: mean off-diagonal effect against this control. column_rms: root mean square of the columns' mean off-diagonal
    effects. Both are near 0 for a control that does to a model what any such data does. Intervals of 95 % resample
    rows, columns and the control's seeds.
    """
    treated, neutral = grids(_treated(items)), grids(_neutral(items))
    rows = [
        _control_row(key, grid, neutral[key], place)
        for key, grid in treated.items()
        if key in neutral and neutral[key].traits == grid.traits
        for place in range(len(neutral[key].treatments))
    ]
    return check(pl.DataFrame(rows, schema=CONTROLS, orient="row"), CONTROLS, "controls.parquet")


def _treated(items: pl.DataFrame) -> pl.DataFrame:
    return items.filter(pl.col("trained").is_not_null())


def _neutral(items: pl.DataFrame) -> pl.DataFrame:
    return items.filter(pl.col("trained").is_null() & pl.col("seed").is_not_null())


def grids(items: pl.DataFrame) -> dict[tuple[str, str, str], Grid]:
    """Return model, protocol and context to the scores of its treatments. Families go to the halves in turn by name."""
    half = (pl.col("family").rank("dense").over("evaluation") % 2).cast(pl.Int32).alias("half")
    of = [*VIEW, "treatment", "trained", "seed", "evaluated", "half"]
    means = items.with_columns(half).group_by(of, maintain_order=True).agg(pl.col("score").mean())
    parts = means.partition_by(*VIEW, as_dict=True, maintain_order=True)
    return {(str(key[0]), str(key[1]), str(key[2])): _grid(part) for key, part in parts.items()}


def _grid(means: pl.DataFrame) -> Grid:
    names = {key: means[key].unique(maintain_order=True).to_list() for key in ("treatment", "evaluated", "seed")}
    places = {key: {name: i for i, name in enumerate(found)} for key, found in names.items()}
    scores = np.full((len(names["seed"]), len(names["treatment"]), len(names["evaluated"]), 2), np.nan)
    own = np.zeros(scores.shape[1:3], dtype=bool)
    for row in means.iter_rows(named=True):
        i, j = places["treatment"][row["treatment"]], places["evaluated"][row["evaluated"]]
        score = row["score"]
        scores[places["seed"][row["seed"]], i, j, row["half"]] = np.nan if score is None else score
        own[i, j] |= row["trained"] == row["evaluated"]
    return Grid(tuple(names["treatment"]), tuple(names["evaluated"]), scores, own)


def residuals(effects: Array, own: NDArray[np.bool_]) -> Array:
    """Return an additive fit's residuals of effects (rows x columns); NaN on the diagonal and where none is seen."""
    seen = np.isfinite(effects) & ~own
    rows, columns = np.nonzero(seen)
    design = np.zeros((len(rows), sum(effects.shape)))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), effects.shape[0] + columns] = 1
    values = effects[seen]
    fit = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    found = np.full(effects.shape, np.nan)
    found[seen] = values - fit
    return found


def _agreement_row(key: Sequence[str], grid: Grid) -> dict[str, object]:
    row: dict[str, object] = {**dict.fromkeys(AGREEMENT), **dict(zip(VIEW, key, strict=True))}
    row |= {"n_rows": len(grid.treatments), "n_columns": len(grid.traits), "n_seeds": len(grid.scores)}
    if min(len(grid.treatments), len(grid.traits)) < FEWEST or len(grid.scores) < 2:
        return row
    whole = np.stack([residuals(scores, grid.own) for scores in grid.means])
    halves = [np.stack([residuals(scores, grid.own) for scores in grid.scores[..., half]]) for half in (0, 1)]
    pairs = list(permutations(range(len(grid.scores)), 2))
    same = [(whole[s], whole[t]) for s, t in pairs if s < t]
    split = [(halves[0][s], halves[1][t]) for s, t in pairs]
    r_split = correlations(split)
    longer = spearman_brown(r_split, 2 * len(grid.scores))
    row |= estimate("r", correlations(same)) | estimate("r_split", r_split)
    return row | estimate("reliability", longer)


def correlations(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Return the mean correlation of pairs of tables, then that of each resample of rows and columns."""
    shape = pairs[0][0].shape
    weights = [np.ones(shape), *(resampled(shape, seed) for seed in range(REPLICATES))]
    return np.array([float(np.mean([correlation(a, b, w) for a, b in pairs])) for w in weights])


def estimate(name: str, values: Array) -> dict[str, float | None]:
    """Return the first value with the 95 % interval of the others, its resamples; None for what cannot be told."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not (np.isfinite(values[0]) and len(drawn)):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def resampled(shape: tuple[int, ...], seed: int) -> Array:
    """Return how often each cell stands in a resample of rows and columns."""
    generator = np.random.default_rng(seed)
    rows, columns = (np.bincount(generator.integers(0, n, n), minlength=n) for n in shape)
    return np.outer(rows, columns).astype(float)


def correlation(a: Array, b: Array, weights: Array) -> float:
    """Return the weighted correlation of two tables over the cells that both have; NaN for fewer than three."""
    seen = np.isfinite(a) & np.isfinite(b) & (weights > 0)
    x, y, w = a[seen], b[seen], weights[seen]
    if len(x) < 3:
        return float("nan")
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    spread = np.sqrt(np.sum(w * x**2) * np.sum(w * y**2))
    return float(np.sum(w * x * y) / spread) if spread > 0 else float("nan")


def spearman_brown(r: Array, factor: float) -> Array:
    """Return the reliability of a measurement that is `factor` times as long (Spearman 1910, Brown 1910).

    A negative correlation is chance, and counts as none.
    """
    r = np.maximum(r, 0)
    return factor * r / (1 + (factor - 1) * r)


def _control_row(key: Sequence[str], grid: Grid, neutral: Grid, place: int) -> dict[str, object]:
    treated = np.where(grid.own, np.nan, mean_of(grid.means, axis=0))
    seeds = neutral.means[:, place]
    seeds = seeds[np.isfinite(seeds).any(axis=1)]
    row: dict[str, object] = {**dict.fromkeys(CONTROLS), **dict(zip(VIEW, key, strict=True))}
    row |= {"control": neutral.treatments[place], "n_seeds": len(seeds)}
    if not len(seeds):
        return row
    found = [_shift(treated, seeds.mean(axis=0), np.ones(treated.shape))]
    generator = np.random.default_rng(0)
    for replicate in range(REPLICATES):
        drawn = seeds[generator.integers(0, len(seeds), len(seeds))].mean(axis=0)
        found.append(_shift(treated, drawn, resampled(treated.shape, replicate)))
    for name, values in zip(("shift", "column_rms"), np.array(found).T, strict=True):
        row |= estimate(name, values)
    return row


def _shift(treated: Array, control: Array, weights: Array) -> tuple[float, float]:
    """Return the weighted mean off-diagonal effect, and the root mean square of its column means."""
    effects = treated - control
    weights = np.where(np.isfinite(effects), weights, 0)
    sums, counts = np.nansum(weights * effects, axis=0), weights.sum(axis=0)
    if not counts.any():
        return float("nan"), float("nan")
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return float(sums.sum() / counts.sum()), float(np.sqrt(np.average(means**2, weights=counts)))
