"""The ledger: how much of all that varies is treatment, evaluation, seed, item, and what goes between them.

    y = mean + treatment_i + evaluation_j + (treatment x evaluation)_ij + seed_is + (seed x evaluation)_ijs
        + item_jk + (treatment x item)_ijk + residual_ijsk

Seeds are nested in treatments and items in evaluations; all are random. Components are estimated from expected mean
squares (analysis of variance; Searle, Casella & McCulloch 1992, chapter 4) for complete tables, which takes seconds
where a mixed model would take gigabytes. An estimate may be negative; its share is then 0. Intervals of 95 % are of a
jackknife over treatments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl
from scipy import stats

from propgen.scores import Array
from propgen.sheet import VIEW, Sheet
from propgen.tables import LEDGER, check

COMPONENTS = (
    "treatment",
    "evaluation",
    "treatment x evaluation",
    "seed",
    "seed x evaluation",
    "item",
    "treatment x item",
    "residual",
)
MODELS = ("model", "model x treatment", "model x evaluation", "model x treatment x evaluation")


def ledger(sheets: Iterable[Sheet]) -> pl.DataFrame:
    """Return variance components of the trained rows of every sheet, and across base models that share rows.

    Only treatments, seeds and items that are complete count: a seed that misses a cell is left out, and an item that
    one of the others did not score.
    """
    rows: list[dict[str, object]] = []
    found = list(sheets)
    for sheet in found:
        tables = complete(sheet)
        if tables is None:
            continue
        values = components(tables)
        spread = _jackknife(tables) if len(tables[0]) > 3 else {}
        rows += _rows(dict(zip(VIEW, sheet.key, strict=True)), values, spread)
    for protocol, context in dict.fromkeys((sheet.protocol, sheet.context) for sheet in found):
        same = [sheet for sheet in found if (sheet.protocol, sheet.context) == (protocol, context)]
        if len(same) > 1 and (values := across_models(same)) is not None:
            rows += _rows({"model": "all", "protocol": protocol, "context": context}, values, {})
    return check(pl.DataFrame(rows, schema=LEDGER, orient="row"), LEDGER, "ledger.parquet")


def _rows(view: Mapping[str, str], values: Mapping[str, float], spread: Mapping[str, float]) -> list[dict[str, object]]:
    total = sum(max(0.0, value) for value in values.values())
    t = float(stats.norm.ppf(0.975))
    rows: list[dict[str, object]] = []
    for name, value in values.items():
        error = spread.get(name)
        bounds = (None, None) if error is None else (value - t * error, value + t * error)
        share = max(0.0, value) / total if total > 0 else None
        rows.append({**view, "component": name, "variance": value, "share": share, "low": bounds[0], "high": bounds[1]})
    return rows


def complete(sheet: Sheet) -> tuple[Array, ...] | None:
    """Return treatments x seeds x items of each column, without gaps; None where too little is complete."""
    scores = sheet.scores
    whole = np.isfinite(scores.means).all(axis=1)
    arms = [np.flatnonzero((scores.arm == i) & whole) for i in sheet.trained]
    seeds = min((len(arm) for arm in arms if len(arm) > 1), default=0)
    kept = [arm[:seeds] for arm in arms if len(arm) > 1]
    tables = [values[np.array(kept)] for values in scores.values] if seeds else []
    tables = [table[..., np.isfinite(table).all(axis=(0, 1))] for table in tables]
    if seeds < 2 or len(kept) < 2 or len(tables) < 2 or min(table.shape[2] for table in tables) < 2:
        return None
    return tuple(tables)


def components(tables: tuple[Array, ...]) -> dict[str, float]:
    """Return variance components of treatments x seeds x items tables, one for each evaluation."""
    treatments, seeds, _ = tables[0].shape
    counts = np.array([table.shape[2] for table in tables], dtype=float)
    within = [_within(table) for table in tables]
    residual, crossed, item = (float(np.mean([part[k] for part in within])) for k in range(3))
    means = np.stack([table.mean(axis=2) for table in tables], axis=-1)  # treatments x seeds x evaluations
    away = means - means.mean(axis=1, keepdims=True)
    products = np.einsum("tsj,tsk->jk", away, away) / (treatments * (seeds - 1))
    columns = len(tables)
    seed = float((products.sum() - np.trace(products)) / (columns * (columns - 1)))
    noise = float((residual / counts).mean())
    seed_evaluation = float(np.trace(products) / columns) - seed - noise
    cells = means.mean(axis=1)
    crossed_cells = cells - cells.mean(axis=0) - cells.mean(axis=1, keepdims=True) + cells.mean()
    square = float((crossed_cells**2).sum() / ((treatments - 1) * (columns - 1)))
    both = square - (seed_evaluation + noise) / seeds - float((crossed / counts).mean())
    rows, heads = float(np.var(cells.mean(axis=1), ddof=1)), float(np.var(cells.mean(axis=0), ddof=1))
    treatment = rows - square / columns - seed / seeds
    evaluation = heads - square / treatments - float((item / counts).mean())
    found = (treatment, evaluation, both, seed, seed_evaluation, item, crossed, residual)
    return dict(zip(COMPONENTS, found, strict=True))


def _within(table: Array) -> tuple[float, float, float]:
    """Return the components of residual, treatment x item, and item in one evaluation."""
    treatments, seeds, items = table.shape
    by_item = table.mean(axis=1)
    rest = table - by_item[:, None] - table.mean(axis=2, keepdims=True) + table.mean(axis=(1, 2), keepdims=True)
    residual = float((rest**2).sum() / (treatments * (seeds - 1) * (items - 1)))
    crossed = by_item - by_item.mean(axis=0) - by_item.mean(axis=1, keepdims=True) + by_item.mean()
    square = seeds * float((crossed**2).sum() / ((treatments - 1) * (items - 1)))
    main = treatments * seeds * float(np.var(by_item.mean(axis=0), ddof=1))
    return residual, (square - residual) / seeds, (main - square) / (treatments * seeds)


def _jackknife(tables: tuple[Array, ...]) -> dict[str, float]:
    """Return standard errors: each treatment left out in turn."""
    n = len(tables[0])
    drawn = [components(tuple(np.delete(table, i, axis=0) for table in tables)) for i in range(n)]
    values = {name: np.array([found[name] for found in drawn]) for name in COMPONENTS}
    return {name: float(np.sqrt((n - 1) / n * ((v - v.mean()) ** 2).sum())) for name, v in values.items()}


def across_models(sheets: list[Sheet]) -> dict[str, float] | None:
    """Return components of base models x treatments x evaluations that all of them have, from cell means."""
    names = [[str(sheet.rows[i]["treatment"]) for i in sheet.trained] for sheet in sheets]
    rows = [name for name in names[0] if all(name in other for other in names)]
    traits = [trait for trait in sheets[0].traits if all(trait in sheet.traits for sheet in sheets)]
    if len(rows) < 2 or len(traits) < 2:
        return None
    table = np.stack([_cells(sheet, rows, traits) for sheet in sheets])
    return _three_way(table) if np.isfinite(table).all() else None


def _cells(sheet: Sheet, rows: list[str], traits: list[str]) -> Array:
    scores = sheet.scores
    seen = np.isfinite(scores.means)
    count = scores.members @ seen
    means = np.divide(
        scores.members @ np.where(seen, scores.means, 0), count, out=np.full(count.shape, np.nan), where=count > 0
    )
    return means[np.ix_([scores.treatments.index(r) for r in rows], [sheet.traits.index(t) for t in traits])]


def _three_way(table: Array) -> dict[str, float]:
    """Return components of a complete models x treatments x evaluations table without replication.

    The last interaction holds the noise of cells as well.
    """
    m, t, j = table.shape
    mt, mj, tj = table.mean(axis=2), table.mean(axis=1), table.mean(axis=0)
    a, b, c, mean = mt.mean(axis=1), mt.mean(axis=0), tj.mean(axis=0), table.mean()
    last = table - mt[:, :, None] - mj[:, None] - tj + a[:, None, None] + b[:, None] + c - mean
    square = float((last**2).sum() / ((m - 1) * (t - 1) * (j - 1)))
    of_mt = j * float(((mt - a[:, None] - b + mean) ** 2).sum() / ((m - 1) * (t - 1)))
    of_mj = t * float(((mj - a[:, None] - c + mean) ** 2).sum() / ((m - 1) * (j - 1)))
    of_m = t * j * float(np.var(a, ddof=1))
    found = ((of_m - of_mt - of_mj + square) / (t * j), (of_mt - square) / j, (of_mj - square) / t, square)
    return dict(zip(MODELS, found, strict=True))
