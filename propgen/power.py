"""Power: the smallest effect that a design of seeds, controls and items can find, from how much these vary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import optimize, stats

from propgen.inference import ALPHA, POWER, critical, item_terms, satterthwaite
from propgen.moderation import lent
from propgen.scores import Array, Scores, deviations, ratio, seeds
from propgen.sheet import VIEW, Sheet
from propgen.tables import Schema, check

SEEDS, CONTROLS, ITEMS = (1, 2, 3, 5, 8, 12), (4, 8, 16), (24, 64, 200)
"""The designs that are shown."""
POWERS: Schema = {
    **dict.fromkeys(VIEW, pl.String),
    **dict.fromkeys(("n_seeds", "n_controls", "n_items"), pl.Int64),
    **dict.fromkeys(("se", "mde", "mde_corrected"), pl.Float64),
    "n_cells": pl.Int64,
    **dict.fromkeys(("seed", "control", "interaction", "residual"), pl.Float64),
}


@dataclass(frozen=True)
class Components:
    """How much scores vary, as standard deviations in the score's unit.

    seed, control: between the seeds of a treatment, and of a control, beyond their items' noise. interaction: between
    items, in how far a treatment moves them. residual: of a seed's answer to an item. lent: degrees of freedom that the
    other cells lend to a cell's variance of seeds, in the treated and in the control arm; None where nothing is
    measured, and they are those of 12 rows and 12 columns whose seeds vary alike and independently.
    """

    seed: float
    control: float
    interaction: float
    residual: float
    lent: tuple[float, float] | None = None


DEFAULTS = Components(3.0, 3.0, 10.0, 12.0)
"""Points of 100, stated where nothing is measured; of probabilities a hundredth of it."""
TRAITS, DRAWS = 12, 60
"""Rows and columns of a matrix whose moderation is drawn, and how often it is."""


@dataclass(frozen=True)
class Design:
    """Seeds of a treatment and of its control, and item families of an evaluation."""

    treated: int
    controls: int
    items: int


@lru_cache(maxsize=256)
def _drawn(treated: int, controls: int) -> tuple[tuple[float, float], ...]:
    """Return what moderation lends in matrices whose seeds vary alike: it is an estimate, and varies a lot."""
    dice = np.random.default_rng(0)
    arm = np.concatenate([np.zeros(controls), 1 + np.repeat(np.arange(TRAITS), treated)]).astype(np.intp)
    neutral = np.arange(TRAITS + 1) == 0
    names = tuple(str(i) for i in range(TRAITS + 1))
    against = np.where(neutral, -1, 0).astype(np.intp)
    found: list[tuple[float, float]] = []
    for _ in range(DRAWS):
        values = tuple(dice.normal(size=(TRAITS, len(arm), 1)))
        families = (np.zeros(1, dtype=np.intp),) * TRAITS
        scores = Scores(names, names[1:], arm, values, families, against, np.zeros(TRAITS + 1, dtype=bool))
        found.append((lent(scores, ~neutral), lent(scores, neutral)))
    return tuple(found)


class Error(NamedTuple):
    """An effect's standard error, its degrees of freedom and those of its test, for each draw of the moderation.

    sd: how much estimates really vary. It is a little less, since the terms of V share the noise of answers.
    """

    se: float
    sd: float
    df: Array
    test_df: Array


def error(components: Components, design: Design) -> Error:
    """Return the error of a design; its test has no degrees of freedom where a seed or an item is alone."""
    c, d = components, design
    noise = c.residual**2 / d.items
    seed, control = (c.seed**2 + noise) / d.treated, (c.control**2 + noise) / d.controls
    items = (c.interaction**2 + c.residual**2 * (1 / d.treated + 1 / d.controls)) / d.items
    pairs = np.array(_drawn(d.treated, d.controls) if c.lent is None else [c.lent])
    dfs = np.stack([pairs[:, 0] + d.treated - 1, pairs[:, 1] + d.controls - 1, np.full(len(pairs), d.items - 1.0)])
    variance, twice = seed + control + items, noise * (1 / d.treated + 1 / d.controls)
    se, sd = float(np.sqrt(variance)), float(np.sqrt(variance - twice))
    if min(d.treated, d.controls, d.items) < 2:
        return Error(se, sd, np.zeros(len(pairs)), np.zeros(len(pairs)))
    parts = np.broadcast_to(np.array([seed, control, items])[:, None], dfs.shape)
    return Error(se, sd, satterthwaite(parts, dfs), dfs.min(axis=0))


def power(found: Error, effect: float, alpha: float = ALPHA) -> float:
    """Return the probability with which an effect is found by a two-sided test; 0 where there is none."""
    if not found.test_df.all():
        return 0.0
    bound = critical(found.test_df, alpha) * found.se / found.sd
    return float(stats.nct.sf(bound, found.df, effect / found.sd).mean())


def smallest(components: Components, design: Design, alpha: float = ALPHA) -> float | None:
    """Return the smallest effect that is found with power .8; None where the design allows no test."""
    found = error(components, design)
    if not found.test_df.all():
        return None
    most = found.se * 2 * float(critical(found.test_df, alpha).max())
    return float(optimize.brentq(lambda size: power(found, size, alpha) - POWER, 0.0, most, xtol=1e-4 * found.se))  # type: ignore[arg-type]


def measured(sheet: Sheet) -> Components | None:
    """Return the components of a finished view by analysis of variance, None where it has too few seeds or items."""
    scores = sheet.scores
    found = seeds(scores)
    treated, controls = _arms(scores)
    residual = _residual(scores)
    items, _ = item_terms(scores)
    families = np.array([len(np.unique(names)) for names in scores.families], dtype=float)
    counts = np.array([values.shape[1] for values in scores.values], dtype=float)
    if not np.isfinite(found.variance[treated]).any() or not np.isfinite(residual).any():
        return None
    noise = residual / counts
    ones = np.ones_like(found.number[treated])
    lone = ratio(ones, found.number[treated]) + ratio(ones, found.number[scores.reference[treated]])
    terms = {
        "seed": found.variance[treated] - noise,
        "control": found.variance[controls] - noise,
        "interaction": items[treated] * families - lone * residual * families / counts,
        "residual": residual[None],
    }
    sds = {name: float(np.sqrt(max(0.0, _mean(values)))) for name, values in terms.items()}
    if not any(sds.values()):
        return None  # scores that do not vary say nothing of how they would
    return Components(**sds, lent=(lent(scores, treated), lent(scores, controls)))


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


def tabulate(sheets: Iterable[Sheet], alpha: float) -> pl.DataFrame:
    """Return designs with the smallest effects that they find, for the components that each view shows."""
    parts = [pl.DataFrame(schema=POWERS)]
    for sheet in sheets:
        if (components := measured(sheet)) is not None:
            cells = len(sheet.trained) * len(sheet.traits) - int((sheet.own[sheet.trained] >= 0).sum())
            view: dict[str, str] = dict(zip(VIEW, sheet.key, strict=True))
            parts.append(table(view, components, cells, alpha))
    return check(pl.concat(parts), POWERS, "power.parquet")


def table(
    view: Mapping[str, str], components: Components, cells: int, alpha: float, designs: Iterable[Design] | None = None
) -> pl.DataFrame:
    """Return designs with the smallest effects that they find, uncorrected and in a search among `cells`."""
    designs = designs or [Design(*part) for part in product(SEEDS, CONTROLS, ITEMS)]
    rows = [
        {
            **view,
            "n_seeds": d.treated,
            "n_controls": d.controls,
            "n_items": d.items,
            "se": error(components, d).se,
            "mde": smallest(components, d, alpha),
            "mde_corrected": smallest(components, d, alpha / max(cells, 1)),
            "n_cells": cells,
            **{name: getattr(components, name) for name in ("seed", "control", "interaction", "residual")},
        }
        for d in designs
    ]
    return pl.DataFrame(rows, schema=POWERS)
