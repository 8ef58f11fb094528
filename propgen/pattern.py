"""The pattern: which evaluated traits go together in one regime's rows of a sheet, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import Any

import numpy as np
import polars as pl

from propgen import factors
from propgen.generality import View, seed_effects, views
from propgen.inference import effects
from propgen.scores import Array, Mask, means
from propgen.sheet import Sheet
from propgen.structure import residuals
from propgen.tables import COMOVEMENT, LOADINGS, MODELS, STRUCTURE, check

KEYS = ("model", "regime", "protocol", "context")
SEED = 0
"""Of everything that is drawn, so that the same items give the same tables."""


class Pattern:
    """A regime's rows of a sheet: effects, their squared errors, and the residuals of seeds."""

    def __init__(self, view: View, sheet: Sheet, level: float, valence: Mapping[str, float]) -> None:
        rows = [i for i in sheet.trained if sheet.rows[i]["regime"] == view.key[1]]
        found = effects(sheet.scores, level)
        place = [list(sheet.trained).index(i) for i in rows]
        self.view = view
        self.effect = found.effect[rows]
        self.variance = found.terms.variance[rows]
        self.own: Mask = np.array([[row[0] == trait for trait in view.traits] for row in view.rows])
        self.seeds = seed_effects(sheet)[:, place]
        good = np.array([valence.get(trait, 0.0) for trait in view.traits])
        self.valence = np.array([valence.get(row[0], 0.0) for row in view.rows])[:, None] * good
        self.dice = np.random.default_rng(SEED)

    @property
    def labels(self) -> dict[str, str]:
        """The view's key by column."""
        return dict(zip(KEYS, self.view.key, strict=True))

    @property
    def enough(self) -> bool:
        """Whether residuals mean anything."""
        return min(self.effect.shape) >= factors.FEWEST

    @property
    def table(self) -> Array:
        """Residuals of the effects."""
        return residuals(self.effect, self.own)

    def structure(self) -> dict[str, object]:
        """Return the row of `structure.parquet`."""
        rows, columns = self.effect.shape
        off = np.where(self.own, np.nan, self.effect)[None]
        seen = np.isfinite(off)
        row: dict[str, object] = {**dict.fromkeys(STRUCTURE), **self.labels, "n_rows": rows, "n_columns": columns}
        row |= {"n_seeds": len(self.seeds), "rms": _none(np.sqrt((off[seen] ** 2).mean()) if seen.any() else np.nan)}
        return row | self._decomposition() | self._rank() | self._symmetry() if self.enough else row

    def _decomposition(self) -> dict[str, object]:
        """Return variances of rows, columns and residuals, noise taken out by products of different seeds."""
        pairs = list(permutations(range(len(self.seeds)), 2))
        if not pairs:
            return {}
        tables = [np.where(self.own, np.nan, scores) for scores in self.seeds]
        parts = [_margins(table) for table in tables]
        names = ("row_variance", "column_variance", "residual_variance")
        found: dict[str, object] = {"grand_mean": _none(float(np.mean([factors.additive(t).mean() for t in tables])))}
        for k, name in enumerate(names):
            found[name] = _none(float(np.mean([_shared(parts[s][k], parts[t][k]) for s, t in pairs])))
        return found

    def _rank(self) -> dict[str, object]:
        known = np.isfinite(self.variance).any()
        found = factors.rank(self.effect, self.own, self.variance if known else None, self.dice)
        if found is None:
            return {}
        values = {f"singular_{i}": x for i, x in enumerate(found.singular[:3], 1)}
        return {"rank": found.k, "rank_left_out": factors.left_out(self._folds()), "null": found.null, **values}

    def _folds(self) -> list[tuple[Array, Array]]:
        """Return residuals of the other seeds on one half of the items, and of a left-out seed on the other half."""
        halves = self.view.halves
        if len(halves) < 2:
            return []
        found: list[tuple[Array, Array]] = []
        for seed in range(len(halves)):
            for half in (0, 1):
                rest = means(np.delete(halves[..., half], seed, axis=0), axis=0)
                left = halves[seed, ..., 1 - half]
                found.append((residuals(rest, self.own), residuals(left, self.own)))
        return found

    def _symmetry(self) -> dict[str, object]:
        traits = [trait for trait, _ in self.view.rows]
        if sorted(traits) != sorted(self.view.traits):
            return {}
        order = [self.view.traits.index(trait) for trait in traits]
        halves = self.view.halves
        tables = [residuals(halves[s, ..., s % 2], self.own)[:, order] for s in range(len(halves))]
        if len(tables) == 1:
            tables = [self.table[:, order]]
        found = factors.symmetry(tables, self.dice)
        if found is None:
            return {}
        return {
            "reciprocity": _none(found.reciprocity),
            "symmetric": _none(found.symmetric),
            "p_reciprocity": _none(found.p),
        }


def _none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _margins(table: Array) -> tuple[Array, Array, Array]:
    """Return row and column effects around the grand mean, and residuals."""
    fit = factors.additive(table)
    return fit.mean(axis=1) - fit.mean(), fit.mean(axis=0) - fit.mean(), table - fit


def _shared(a: Array, b: Array) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float((a[both] * b[both]).mean()) if both.any() else float("nan")


def tabulate(sheets: Iterable[Sheet], level: float, valence: Mapping[str, float]) -> dict[str, pl.DataFrame]:
    """Return the tables `structure`, `models`, `loadings` and `comovement`."""
    rows: dict[str, list[dict[str, Any]]] = {"structure": [], "models": [], "loadings": [], "comovement": []}
    for sheet in sheets:
        for view in views([sheet]):
            pattern = Pattern(view, sheet, level, valence)
            structure = pattern.structure()
            clusters = factors.cluster(pattern.table, pattern.dice) if pattern.enough else None
            structure |= {"clusters": len(set(clusters.labels)), "silhouette": clusters.silhouette} if clusters else {}
            rows["structure"].append(structure)
            rows["models"] += _models(pattern)
            rows["loadings"] += _loadings(pattern, structure["rank"], clusters)
            rows["comovement"] += _comovement(pattern, clusters)
    schemas = {"structure": STRUCTURE, "models": MODELS, "loadings": LOADINGS, "comovement": COMOVEMENT}
    frames = {name: pl.DataFrame(found, schema=schemas[name], orient="row") for name, found in rows.items()}
    return {name: check(frame, schemas[name], f"{name}.parquet") for name, frame in frames.items()}


def _models(pattern: Pattern) -> list[dict[str, Any]]:
    fits = factors.compare(pattern.effect, pattern.own, pattern.valence, pattern.dice) if pattern.enough else []
    return [
        {**pattern.labels, "fit": f.model, "rmse": f.rmse, "r2": _none(f.r2), "r2_se": _none(f.r2_se)} for f in fits
    ]


def _loadings(pattern: Pattern, rank: object, clusters: factors.Clusters | None) -> list[dict[str, Any]]:
    """Return loadings on as many components as stand out, on one where none does, so that its size can be seen."""
    if not pattern.enough or not np.isfinite(pattern.table).any():
        return []
    k = max(int(rank) if isinstance(rank, int) else 0, 1)
    found = factors.loadings(pattern.table, k, pattern.dice)
    rows: list[dict[str, Any]] = []
    for j, trait in enumerate(pattern.view.traits):
        group = {"cluster": clusters.labels[j], "place": clusters.order.index(j)} if clusters else {}
        for c in range(k):
            numbers = {
                "loading": _none(found.value[j, c]),
                "low": _none(found.low[j, c]),
                "high": _none(found.high[j, c]),
            }
            empty = {"cluster": None, "place": None}
            rows.append({**pattern.labels, "evaluated": trait, "component": c + 1, **numbers, **empty, **group})
    return rows


def _comovement(pattern: Pattern, clusters: factors.Clusters | None) -> list[dict[str, Any]]:
    found = factors.comovement(pattern.seeds, pattern.own)
    traits = pattern.view.traits
    rows: list[dict[str, Any]] = []
    for i, trait in enumerate(traits):
        for j, other in enumerate(traits):
            together = _none(clusters.together[i, j]) if clusters else None
            rows.append(
                {**pattern.labels, "evaluated": trait, "other": other, "r": _none(found[i, j]), "together": together}
            )
    return rows
