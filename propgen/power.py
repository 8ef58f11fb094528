"""Power: the smallest effect that a design of seeds, controls and items can find, from how much these vary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from propgen.inference import ALPHA, Array, Scores, detectable, deviations, item_terms, lent, satterthwaite, seeds
from propgen.sheet import Sheet

SEEDS, CONTROLS, ITEMS = (1, 2, 3, 5, 8, 12), (4, 8, 16), (24, 64, 200)
"""The designs that are shown."""


@dataclass(frozen=True)
class Components:
    """How much scores vary, as standard deviations in the score's unit.

    seed, control: between the seeds of a treatment, and of a control, beyond their items' noise. interaction: between
    items, in how far a treatment moves them. residual: of a seed's answer to an item. treated_df, control_df: degrees
    of freedom that the other cells lend to a cell's variance of seeds.
    """

    seed: float
    control: float
    interaction: float
    residual: float
    treated_df: float
    control_df: float


@dataclass(frozen=True)
class Design:
    """Seeds of a treatment and of its control, and item families of an evaluation."""

    treated: int
    controls: int
    items: int


def assumed(treated: int, controls: int, traits: int = 12, scale: float = 1.0) -> Components:
    """Return stated defaults where nothing is measured: 3, 3, 10 and 12 points, times `scale`.

    Borrowed degrees of freedom are those of `traits` rows and columns whose seeds vary alike and independently.
    """

    def shared(df: float) -> float:
        return df * traits * df / (df + traits) if df > 0 else 0.0

    borrowed = shared(traits * (treated - 1)), shared(controls - 1)
    return Components(3 * scale, 3 * scale, 10 * scale, 12 * scale, *borrowed)


def standard_error(components: Components, design: Design) -> tuple[float, float, float]:
    """Return an effect's standard error, its degrees of freedom, and those of its test (0: there is none)."""
    c, d = components, design
    noise = c.residual**2 / d.items
    parts = np.array(
        [
            (c.seed**2 + noise) / d.treated,
            (c.control**2 + noise) / d.controls,
            (c.interaction**2 + c.residual**2 * (1 / d.treated + 1 / d.controls)) / d.items,
        ]
    )
    dfs = np.array([c.treated_df + d.treated - 1, c.control_df + d.controls - 1, d.items - 1])
    if min(d.treated, d.controls, d.items) < 2:
        return float(np.sqrt(parts.sum())), float(dfs.max()), 0.0
    df = satterthwaite(parts[:, None], np.maximum(dfs, 1e-9)[:, None])
    return float(np.sqrt(parts.sum())), float(df[0]), float(dfs.min())


def smallest(components: Components, design: Design, alpha: float = ALPHA) -> float | None:
    """Return the smallest effect that is found with power .8; None where the design allows no test."""
    se, df, test_df = standard_error(components, design)
    return se * float(detectable(np.array(df), np.array(test_df), alpha)) if test_df else None


def power(components: Components, design: Design, effect: float, alpha: float = ALPHA) -> float:
    """Return the probability with which an effect is found; 0 where the design allows no test."""
    se, df, test_df = standard_error(components, design)
    if not test_df:
        return 0.0
    critical = stats.t.ppf(1 - alpha / 2, test_df)
    return float(stats.nct.sf(critical, df, effect / se) + stats.nct.cdf(-critical, df, effect / se))


def measured(sheet: Sheet) -> Components | None:
    """Return the components of a finished view by analysis of variance, None where it has too few seeds or items."""
    scores = sheet.scores
    found = seeds(scores)
    treated, controls = _arms(scores)
    residual = _residual(scores)
    items, _ = item_terms(scores)
    families = np.array([len(np.unique(names)) for names in scores.families], dtype=float)
    counts = np.array([values.shape[1] for values in scores.values], dtype=float)
    if not treated.any() or not np.isfinite(found.variance[treated]).any() or not np.isfinite(residual).any():
        return None
    noise = residual / counts
    lone = 1 / found.number[treated] + 1 / found.number[scores.reference[treated]]
    terms = {
        "seed": found.variance[treated] - noise,
        "control": found.variance[controls] - noise,
        "interaction": items[treated] * families - lone * residual * families / counts,
        "residual": residual[None],
    }
    sds = {name: float(np.sqrt(max(0.0, _mean(values)))) for name, values in terms.items()}
    return Components(**sds, treated_df=lent(scores, treated), control_df=lent(scores, controls))


def _arms(scores: Scores) -> tuple[Any, Any]:
    """Return which treatments are compared with a control, and which are that control."""
    against = scores.reference
    controls = np.zeros(len(against), dtype=bool)
    controls[[i for i in against if i >= 0 and not scores.fixed[i]]] = True
    return (against >= 0) & ~scores.fixed[against] & ~controls, controls


def _residual(scores: Scores) -> Array:
    """Return the variance of a seed's answers to items around its treatment's and its own mean, for each column."""
    away = deviations(scores)
    found: list[float] = []
    for j, values in enumerate(scores.values):
        seen = np.isfinite(values)
        filled = np.where(seen, values, 0)
        counts = scores.members @ seen
        mean = np.divide(scores.members @ filled, counts, out=np.zeros(counts.shape), where=counts > 0)
        rest = np.where(seen, filled - mean[scores.arm] - away[:, [j]], 0)
        number = scores.members @ np.ones(len(values))
        df = ((number - 1)[:, None] * (counts > 0)).sum() - (number - 1).sum()
        found.append(float((rest**2).sum() / df) if df > 0 else np.nan)
    return np.array(found)


def _mean(values: Array) -> float:
    seen = values[np.isfinite(values)]
    return float(seen.mean()) if len(seen) else 0.0


def table(components: Components, cells: int, alpha: float, designs: Iterable[Design] | None = None) -> pl.DataFrame:
    """Return designs with the smallest effects that they find, uncorrected and in a search among `cells`."""
    designs = designs or [Design(*part) for part in product(SEEDS, CONTROLS, ITEMS)]
    rows = [
        {
            "n_seeds": d.treated,
            "n_controls": d.controls,
            "n_items": d.items,
            "se": standard_error(components, d)[0],
            "mde": smallest(components, d, alpha),
            "mde_corrected": smallest(components, d, alpha / max(cells, 1)),
        }
        for d in designs
    ]
    return pl.DataFrame(rows, infer_schema_length=None)
