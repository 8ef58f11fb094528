"""Analysis: from items and gates to the tables of an experiment. Effects are differences from control finetunes.

Notation of the docstrings: a treatment has T seeds, its control C seeds; every finetune answers the same items, which
belong to F families (paraphrases of one item).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from propgen.digest import canonical
from propgen.errors import PropgenError
from propgen.files import replace
from propgen.gates import FAILED, reserved, verdicts
from propgen.inference import Effects, Terms, effects
from propgen.items import KEYS, Items
from propgen.multiplicity import adjusted, equivalence, selected_intervals, shrunken
from propgen.plan import BASE, PROBE, Plan
from propgen.scores import Array, Mask
from propgen.sheet import Sheet, sheets
from propgen.tables import CELLS, COLUMN, MATRIX, check
from propgen.transfer import transfer

Frame = pl.DataFrame
Gated = Mapping[tuple[str, str, str], str]
TRANSFER, TINY, NONE, OPEN = "transfer", "tiny", "no transfer", "inconclusive"
"""Verdicts on a cell: other than 0; other than 0 and yet within the smallest effect of interest; within it; neither."""
EDGE = 1e-3
"""Probabilities are this far from 0 and 1 before their logits are taken."""


@dataclass(frozen=True)
class Tables:
    """An experiment's tables. matrix: failed rows left out. everything: the same with all rows."""

    cells: Frame
    matrix: Frame
    everything: Frame
    about: dict[str, Any]


def tabulate(plan: Plan, items: Items, gates: Frame) -> Tables:
    """Return cells, and effects with intervals and tests, without the rows that failed a gate and with them."""
    gated = verdicts(gates)
    about = {**items.about, "digest": plan.matrix_digest}
    cells = _cells(plan, items.rows, gated)
    return Tables(cells, matrix(plan, items.rows, gated), matrix(plan, items.rows, gated, failed=True), about)


def write_tables(folder: Path, tables: Tables) -> None:
    """Write the tables, each replaced in one step."""
    (folder / "statistics").mkdir(parents=True, exist_ok=True)
    about = {"propgen": canonical(tables.about).decode()}
    named = {"cells": tables.cells, "matrix": tables.matrix, "statistics/matrix-all": tables.everything}
    for name, frame in named.items():
        replace(folder / f"{name}.parquet", lambda path, f=frame: f.write_parquet(path, metadata=about))
    replace(folder / "matrix.csv", tables.matrix.write_csv)


# -- one row per cell ----------------------------------------------------------------------------------------------


def _cells(plan: Plan, items: Frame, gated: Gated) -> Frame:
    keys = list(KEYS)
    liked = pl.col("score") > pl.when(pl.col("p_positive").is_not_null()).then(0.5).otherwise(0.0)
    if "p_positive" not in items.columns:
        liked = pl.col("score") > 0
    rows = items.group_by(keys, maintain_order=True).agg(liked.mean().alias("preference"))
    by_item = items.group_by([*keys, "item"], maintain_order=True).agg(pl.col("score").mean())
    score = pl.col("score")
    means = by_item.group_by(keys, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("n_items"),
        score.count().cast(pl.Int64).alias("n_scored"),
        score.mean(),
        score.std().alias("sd_items"),
    )
    of = ["model", "evaluation"]
    base = means.filter(treatment=BASE).group_by(of).agg(score.mean().alias("base"))
    control = means.filter(treatment=plan.control).group_by(of).agg(score.mean().alias("control"))
    joined = means.with_columns(rows["preference"])
    for more in (base, control):
        joined = joined.join(more, on=of, how="left", maintain_order="left")
    joined = joined.join(
        _digests(plan), on=[*of, "treatment", "seed"], how="left", nulls_equal=True, maintain_order="left"
    )
    joined = joined.with_columns(_gate(gated, joined), effect=score - pl.col("control"))
    return check(joined.select(list(CELLS)), CELLS, "cells.parquet")


def _digests(plan: Plan) -> Frame:
    """Return the digests of the plan's adapters and cells."""
    rows: list[tuple[str | int | None, ...]] = []
    for cell in plan.cells:
        subject = cell.subject
        seed = None if subject.treatment == BASE else subject.seed
        name = cell.evaluation.name
        rows.append((subject.model, subject.treatment, seed, name, subject.digest, cell.digest))
    names = {"model": pl.String, "treatment": pl.String, "seed": pl.Int64, "evaluation": pl.String}
    return pl.DataFrame(rows, schema={**names, "adapter": pl.String, "cell": pl.String}, orient="row")


def _gate(gated: Gated, frame: Frame) -> pl.Series:
    keys = frame.select("model", "treatment", "protocol").iter_rows()
    return pl.Series("gate", [gated.get((m, t, p)) for m, t, p in keys], dtype=pl.String)


# -- one row per treatment and evaluation --------------------------------------------------------------------------


def matrix(plan: Plan, items: Frame, gated: Gated, *, failed: bool = False) -> Frame:
    """Return effects with intervals and tests: treatments against the control, and controls against the base.

    failed: keep the rows that failed a gate, which have no numbers otherwise. An own effect that a gate judged on one
    half of the families is estimated from the other half.
    """
    found = sheets(items.filter(pl.col("context") != PROBE), plan.control)
    kinds = {e.protocol: e.spec["kind"] for e in plan.evaluations}
    parts: list[Frame] = [pl.DataFrame(schema=MATRIX)]
    for sheet in found.values():
        gone = [t for (m, t, p), v in gated.items() if (m, p) == sheet.key[:2] and v.startswith(FAILED)]
        kind, halved = kinds[sheet.protocol], reserved(sheet, found)
        if failed:  # no gate has selected rows, so none has used up items
            parts.append(_block(sheet, np.zeros_like(halved), plan.analysis, kind))
        else:
            parts.append(_block(sheet.without(gone), halved, plan.analysis, kind))
    frame = _in_order(plan, pl.concat(parts))
    return check(frame.with_columns(_gate(gated, frame)).select(list(MATRIX)), MATRIX, "matrix.parquet")


def _in_order(plan: Plan, frame: Frame) -> Frame:
    """Return rows in the plan's order: base models, treatments, evaluations."""
    names = {
        "model": [subject.model for subject in plan.subjects],
        "treatment": [treatment.name for treatment in plan.treatments],
        "evaluation": [evaluation.name for evaluation in plan.evaluations],
    }
    places = {key: {name: i for i, name in enumerate(dict.fromkeys(found))} for key, found in names.items()}
    return frame.sort(pl.col(key).replace_strict(place, return_dtype=pl.Int64) for key, place in places.items())


def estimate(sheet: Sheet, halved: Mask, analysis: Mapping[str, Any]) -> Effects:
    """Return a sheet's effects. halved: treatments whose own effect is that of the half that no gate has seen."""
    level, new = float(analysis["confidence"]), analysis["estimand"] == "new-items"
    whole = effects(sheet.scores, level, new_items=new)
    if not halved.any():
        return whole
    half = effects(sheet.families(0).scores, level, new_items=new)
    own = halved[:, None] & (np.arange(len(sheet.traits)) == sheet.own[:, None])
    terms = Terms(*(np.where(own, h, w) for h, w in zip(half.terms, whole.terms, strict=True)))
    parts = (np.where(own, h, w) for h, w in zip(half[:-1], whole[:-1], strict=True))
    return Effects(*parts, terms)  # type: ignore[arg-type]


def _block(sheet: Sheet, halved: Mask, analysis: Mapping[str, Any], kind: str) -> Frame:
    """Return a sheet's rows of the matrix."""
    found = estimate(sheet, halved, analysis)
    own = np.arange(len(sheet.traits)) == sheet.own[:, None]
    trained = np.zeros(own.shape, dtype=bool)
    trained[sheet.trained] = True
    tau = transfer(sheet.scores, found, np.where(trained.any(axis=1), sheet.own, -1), float(analysis["confidence"]))
    q, holm = (adjusted(np.where(trained & ~own, found.p, np.nan), m) for m in ("bh", "holm"))
    fcr = selected_intervals(found, q, float(analysis["alpha"]))
    same = equivalence(found, float(analysis["smallest"]))
    logit = _on_logits(sheet, halved, analysis) if kind == "choice" else None
    columns: dict[str, Array] = {
        "effect": found.effect,
        "se": found.se,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        "q": q,
        "n_seeds": found.seeds,
        "n_controls": found.controls,
        "n_items": _item_counts(sheet, halved),
        "mde": found.mde,
        "tau": tau.tau,
        "tau_low": tau.low,
        "tau_high": tau.high,
        "effect_std": found.effect / np.maximum(_deviations(sheet), float(analysis["sd_floor"])),
        "p_holm": holm,
        "fcr_low": fcr[0],
        "fcr_high": fcr[1],
        "effect_shrunk": shrunken(found.effect, found.se, trained & ~own),
        "p_equivalence": same,
        "effect_logit": np.full(own.shape, np.nan) if logit is None else logit.effect,
        "p_logit": np.full(own.shape, np.nan) if logit is None else logit.p,
    }
    verdict = _verdicts(np.where(np.isfinite(q), q, found.p), same, float(analysis["alpha"]))
    return _frame(sheet, columns, verdict)


def _on_logits(sheet: Sheet, halved: Mask, analysis: Mapping[str, Any]) -> Effects:
    def logit(values: Array) -> Array:
        inside = np.clip(values, EDGE, 1 - EDGE)
        return np.log(inside / (1 - inside))

    return estimate(sheet.transform(logit), halved, analysis)


def _verdicts(p: Array, same: Array, alpha: float) -> list[list[str | None]]:
    """Return what is said of each tested cell. p: corrected where many were tested. same: of the equivalence tests."""
    differs, within = p < alpha, same < alpha
    words = np.select([~np.isfinite(p), differs & within, differs, within], ["", TINY, TRANSFER, NONE], default=OPEN)
    return [[str(word) or None for word in row] for row in words]


def _frame(sheet: Sheet, columns: Mapping[str, Array], verdict: list[list[str | None]]) -> Frame:
    """Return one row per column and treatment that is compared with something; none where no cell is there."""
    rows: list[dict[str, Any]] = []
    asked = sheet.scores.members @ sheet.asked
    for i, identity in enumerate(sheet.rows):
        against = int(sheet.scores.reference[i])
        if against < 0:
            continue
        about = {**identity, "reference": sheet.scores.treatments[against]}
        for j, trait in enumerate(sheet.traits):
            if not (asked[i, j] and asked[against, j]):
                continue
            names = dict(zip(COLUMN, (trait, sheet.protocol, sheet.context, sheet.scores.columns[j]), strict=True))
            numbers = {k: _number(v[i, j], MATRIX[k]) for k, v in columns.items()}
            rows.append({**about, **names, **numbers, "verdict": verdict[i][j], "gate": None})
    return pl.DataFrame(rows, schema=MATRIX, orient="row")


def _number(value: float, kind: Any) -> float | int | None:
    """Return a plain number, None for NaN; an unbounded set keeps its infinities."""
    if np.isnan(value):
        return None
    return int(value) if kind == pl.Int64 else float(value)


def _item_counts(sheet: Sheet, halved: Mask) -> Array:
    counts = np.array([values.shape[1] for values in sheet.scores.values], dtype=float)
    half = np.array([values.shape[1] for values in sheet.families(0).scores.values], dtype=float)
    own = halved[:, None] & (np.arange(len(counts)) == sheet.own[:, None])
    return np.where(own, half, np.broadcast_to(counts, own.shape))


def _deviations(sheet: Sheet) -> Array:
    """Return the standard deviation of the base model's items in each column; NaN where it is not known."""
    subjects = sheet.scores.fixed[sheet.scores.arm]
    found = [values[subjects].ravel() for values in sheet.scores.values]
    seen = [values[np.isfinite(values)] for values in found]
    return np.array([np.std(values, ddof=1) if len(values) > 1 else np.nan for values in seen])


def require_effects(tables: Tables) -> None:
    """Raise PropgenError for tables without a single effect."""
    if tables.matrix.is_empty():
        raise PropgenError("too few cells are there to compute an effect, so no tables are written")
