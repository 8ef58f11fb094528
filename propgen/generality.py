"""Generality: how far the pattern of cross effects in one view of an experiment is that of another.

A view is a base model, a regime, a protocol and a context. Two views that differ in one of them are compared by the
residuals of their additive fits off the diagonal, on the rows and columns that they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
import polars as pl

from propgen.scores import Array, Mask, ratio
from propgen.sheet import Sheet
from propgen.structure import FEWEST, correlation, correlations, estimate, residuals, spearman_brown
from propgen.tables import GENERALITY, check

PARTS = ("model", "regime", "protocol", "context")
PERMUTATIONS = 2000
LOWEST = 0.2
"""A reliability whose lower bound is below this corrects nothing."""
JOINT, APART = "joint", "independent"


@dataclass(frozen=True)
class View:
    """Effects of a regime's rows in one sheet.

    rows: trained trait and variant of each. halves: seeds x rows x columns x 2, each half of the families scored alone.
    """

    key: tuple[str, str, str, str]
    rows: tuple[tuple[str, str | None], ...]
    traits: tuple[str, ...]
    halves: Array

    def part(self, rows: Sequence[tuple[str, str | None]], traits: Sequence[str]) -> Array:
        """Return the effects of some rows and columns, in their order."""
        i, j = [self.rows.index(row) for row in rows], [self.traits.index(trait) for trait in traits]
        return self.halves[:, i][:, :, j]


def views(sheets: Iterable[Sheet]) -> list[View]:
    """Return every regime's rows of every sheet."""
    found: list[View] = []
    for sheet in sheets:
        halves = np.stack([seed_effects(sheet.families(half)) for half in (0, 1)], axis=-1)
        regimes = [str(sheet.rows[i]["regime"]) for i in sheet.trained]
        for regime in dict.fromkeys(regimes):
            place = [i for i, name in enumerate(regimes) if name == regime]
            rows = tuple(_label(sheet.rows[sheet.trained[i]]) for i in place)
            key = (sheet.model, regime, sheet.protocol, sheet.context)
            found.append(View(key, rows, sheet.traits, halves[:, place]))
    return found


def _label(row: dict[str, Any]) -> tuple[str, str | None]:
    return str(row["trained"]), row["variant"]


def seed_effects(sheet: Sheet) -> Array:
    """Return each seed's effects against the mean control, seeds x rows x columns; NaN where a seed is missing."""
    scores, rows = sheet.scores, sheet.trained
    members = scores.members[scores.reference[rows]] * (scores.reference[rows] >= 0)[:, None]
    seen = np.isfinite(scores.means)
    control = ratio(members @ np.where(seen, scores.means, 0), members @ seen)
    most = int(scores.members[rows].sum(axis=1).max(initial=0))
    found = np.full((most, len(rows), len(sheet.traits)), np.nan)
    for place, treatment in enumerate(rows):
        means = scores.means[scores.arm == treatment]
        found[: len(means), place] = means - control[place]
    return found


def generality(sheets: Iterable[Sheet]) -> pl.DataFrame:
    """Return a row per pair of views that differ in one respect and share 4 rows and columns at least."""
    rows: list[dict[str, object]] = []
    for a, b in combinations(views(sheets), 2):
        differing = [name for name, x, y in zip(PARTS, a.key, b.key, strict=True) if x != y]
        if len(differing) == 1 and (row := _compare(a, b)) is not None:
            names = dict(zip(PARTS, a.key, strict=True)) | {f"{n}_b": v for n, v in zip(PARTS, b.key, strict=True)}
            rows.append({**names, "across": differing[0], **row})
    return check(pl.DataFrame(rows, schema=GENERALITY, orient="row"), GENERALITY, "generality.parquet")


def _compare(a: View, b: View) -> dict[str, object] | None:
    rows = [row for row in a.rows if row in b.rows]
    traits = [trait for trait in a.traits if trait in b.traits]
    if min(len(rows), len(traits)) < FEWEST:
        return None
    own = np.array([[row[0] == trait for trait in traits] for row in rows])
    parts = [view.part(rows, traits) for view in (a, b)]
    with_all = [residuals(_mean(part), own) for part in parts]
    r = correlations([(with_all[0], with_all[1])])
    square = sorted(trait for trait, _ in rows) == sorted(traits)
    order = [traits.index(trait) for trait, _ in rows] if square else []
    found: dict[str, object] = {"n_rows": len(rows), "n_columns": len(traits)}
    found |= {"n_seeds": len(parts[0]), "n_seeds_b": len(parts[1])} | dict(estimate("r", r))
    found |= {"p": qap(with_all[0], with_all[1], order), "permutation": JOINT if square else APART}
    both = [_reliability(part, own) for part in parts]
    for suffix, (value, low, _) in zip(("", "_b"), both, strict=True):
        found |= {f"reliability{suffix}": value, f"reliability{suffix}_low": low}
    sure = all(low is not None and low >= LOWEST for _, low, _ in both)
    divisor = np.sqrt(float(both[0][0] or 0) * float(both[1][0] or 0)) if sure else 0.0
    return found | {"r_corrected": float(r[0]) / divisor if divisor > 0 else None}


def _mean(part: Array) -> Array:
    """Return the mean over seeds and both halves."""
    seen = np.isfinite(part)
    return ratio(np.where(seen, part, 0).sum(axis=(0, 3)), seen.sum(axis=(0, 3)))


def _reliability(part: Array, own: Mask) -> tuple[float | None, float | None, float | None]:
    """Return the reliability of the mean over seeds and items with its interval, from other seeds on other items."""
    if len(part) < 2:
        return None, None, None
    halves = [[residuals(scores[..., half], own) for scores in part] for half in (0, 1)]
    pairs = [(halves[0][s], halves[1][t]) for s, t in permutations(range(len(part)), 2)]
    longer = spearman_brown(correlations(pairs), 2 * len(part))
    found = estimate("x", longer)
    return found["x"], found["x_low"], found["x_high"]


def qap(a: Array, b: Array, order: Sequence[int]) -> float | None:
    """Return the two-sided p of the correlation of two directed tables by permutation (Krackhardt 1988).

    order: column of each row's own trait where rows and columns are the same traits, whose labels then move in both at
    once, so that own cells stay own cells (Dekker et al. 2007); empty for other tables, whose rows and columns move
    independently.
    """
    dice = np.random.default_rng(0)
    ones = np.ones(a.shape)
    seen = correlation(a, b, ones)
    if not np.isfinite(seen):
        return None
    places = np.array(order, dtype=np.intp)
    null: list[float] = []
    for _ in range(PERMUTATIONS):
        rows = dice.permutation(len(b))
        columns = dice.permutation(b.shape[1])
        if len(places):
            columns = np.empty_like(places)
            columns[places] = places[rows]  # row i becomes row rows[i]: its own column goes with it
        null.append(correlation(a, b[np.ix_(rows, columns)], ones))
    values = np.abs(np.array(null))
    return float((1 + (values >= abs(seen) - 1e-12).sum()) / (1 + np.isfinite(values).sum()))
