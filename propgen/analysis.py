"""Analysis: from cells to the tables of an experiment. Effects are differences from control finetunes.

Notation of the docstrings: a treatment has T seeds, its control C seeds; every finetune answers the same items, which
belong to F families (paraphrases of one item).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from propgen import inference
from propgen.digest import canonical
from propgen.errors import PropgenError
from propgen.files import replace
from propgen.inference import Arm, Effect
from propgen.plan import BASE, Cell, Plan, Treatment
from propgen.store import CorruptError, View
from propgen.tables import CELLS, COLUMN, IDENTITY, MATRIX, Schema, check, read_cell

Frame = pl.DataFrame
Scores = NDArray[np.float64]
SMALLEST_SD = 1e-9
"""Below this the items of the base model do not vary, and a standardised effect means nothing."""


@dataclass(frozen=True)
class Tables:
    """An experiment's tables. missing: paths of cells that were left out. about: what readers must be told."""

    cells: Frame
    items: Frame
    matrix: Frame
    missing: tuple[str, ...]
    about: dict[str, Any]


class Read(NamedTuple):
    """One cell that was read."""

    cell: Cell
    rows: Frame
    execution: dict[str, Any]


def tabulate(plan: Plan, view: View, *, partial: bool = False) -> Tables:
    """Read the plan's cells and compute effects, intervals and tests.

    partial: leave out missing cells instead of refusing. Raises PropgenError if cells are missing, or damaged (these go
    to quarantine, all of them, before the error names them).
    """
    reads, missing = _read_all(plan, view)
    if missing and not partial:
        raise PropgenError(
            f"{len(missing)} cells are missing, first {missing[0]}; run the experiment with snakemake to make them"
        )
    if not reads:
        raise PropgenError(
            "no cell is there yet, so there is nothing to tabulate; run the experiment with snakemake to make them"
        )
    treatments = {treatment.name: treatment for treatment in plan.treatments}
    items = pl.concat([_item_rows(read, treatments) for read in reads], how="diagonal_relaxed")
    cells = _cells(plan, reads, treatments)
    matrix = _matrix(plan, reads, treatments)
    return Tables(cells, items, matrix, missing, _about(plan, reads, missing))


def write_tables(folder: Path, tables: Tables) -> None:
    """Write the tables, each replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"propgen": canonical(tables.about).decode()}
    parquet: Mapping[str, Frame] = {"cells": tables.cells, "items": tables.items, "matrix": tables.matrix}
    for name, frame in parquet.items():
        replace(folder / f"{name}.parquet", lambda path, f=frame: f.write_parquet(path, metadata=about))
    replace(folder / "matrix.csv", tables.matrix.write_csv)


# -- reading -------------------------------------------------------------------------------------------------------


def _read_all(plan: Plan, view: View) -> tuple[list[Read], tuple[str, ...]]:
    reads: list[Read] = []
    missing: list[str] = []
    damaged: list[str] = []
    for cell in plan.cells:
        path = view.store.payload(cell.digest, cell=True)
        if not path.is_file():
            missing.append(cell.path)
            continue
        try:
            table = read_cell(path, cell.digest)
        except CorruptError as error:
            place = view.store.quarantine(cell.digest, view.root / "quarantine")
            (view.root / cell.path).unlink(missing_ok=True)
            damaged.append(f"{cell.path}: {error}; moved to {place}")
            continue
        reads.append(Read(cell, table.rows, table.about["execution"]))
    if damaged:
        raise PropgenError("; ".join(damaged) + "; the next run makes them again")
    return reads, tuple(missing)


def _about(plan: Plan, reads: Sequence[Read], missing: Sequence[str]) -> dict[str, Any]:
    """Return what captions say of the whole: mixtures of data types and engines are never silent."""
    kinds = {(r.execution["engine"], r.execution["dtype"], r.execution["device"]) for r in reads}
    return {
        "experiment": plan.name,
        "control": plan.control,
        "digest": plan.matrix_digest,
        "missing": list(missing),
        "execution": [" ".join(kind) for kind in sorted(kinds)],
    }


# -- one row per item, one row per cell ----------------------------------------------------------------------------


def _labels(cell: Cell, treatment: Treatment) -> dict[str, object]:
    evaluation = cell.evaluation
    return {
        "model": cell.subject.model,
        "trained": treatment.trained,
        "regime": treatment.regime,
        "variant": treatment.variant,
        "dose": treatment.dose,
        "treatment": treatment.name,
        "seed": None if treatment.name == BASE else cell.subject.seed,
        "evaluated": evaluation.trait,
        "protocol": evaluation.protocol,
        "context": evaluation.context,
        "evaluation": evaluation.name,
    }


def _item_rows(read: Read, treatments: Mapping[str, Treatment]) -> Frame:
    schema: Schema = {**IDENTITY, "seed": pl.Int64, **COLUMN}
    labels = _labels(read.cell, treatments[read.cell.subject.treatment])
    columns = [pl.lit(labels[name], dtype=kind).alias(name) for name, kind in schema.items()]  # type: ignore[arg-type]
    return read.rows.select(*columns, pl.exclude("context"))


def _by_item(rows: Frame) -> Frame:
    """Return item, family and score, averaged over an item's samples; null where none was scored."""
    return rows.group_by("item", "family", maintain_order=True).agg(pl.col("score").mean())


def _cells(plan: Plan, reads: Sequence[Read], treatments: Mapping[str, Treatment]) -> Frame:
    found: list[dict[str, object]] = []
    for read in reads:
        scores = _by_item(read.rows)["score"]
        labels = _labels(read.cell, treatments[read.cell.subject.treatment])
        found.append(
            labels
            | {
                "n_items": scores.len(),
                "n_scored": scores.count(),
                "score": scores.mean(),
                "sd_items": scores.std(),
                "preference": _preference(read.rows),
                "gate": None,
                "adapter": read.cell.subject.digest,
                "cell": read.cell.digest,
            }
        )
    frame = pl.DataFrame(found, schema={k: v for k, v in CELLS.items() if k not in ("base", "control", "effect")})
    of = ["model", "evaluation"]
    base = frame.filter(treatment=BASE).group_by(of).agg(pl.col("score").mean().alias("base"))
    control = frame.filter(treatment=plan.control).group_by(of).agg(pl.col("score").mean().alias("control"))
    joined = frame.join(base, on=of, how="left", maintain_order="left")
    joined = joined.join(control, on=of, how="left", maintain_order="left")
    joined = joined.with_columns(effect=pl.col("score") - pl.col("control"))
    return check(joined.select(list(CELLS)), CELLS, "cells.parquet")


def _preference(rows: Frame) -> float | None:
    """Share of scored rows in which the positive response is preferred: score > 0, or for choices > .5."""
    threshold = 0.5 if "p_positive" in rows.columns else 0.0
    share = (rows["score"].drop_nulls() > threshold).mean()
    return None if share is None else float(share)  # type: ignore[arg-type]


# -- one row per treatment and evaluation --------------------------------------------------------------------------


def _matrix(plan: Plan, reads: Sequence[Read], treatments: Mapping[str, Treatment]) -> Frame:
    """Return effects with intervals and tests: treatments against the control, and controls against the base."""
    arms = _arms(reads)
    level = float(plan.analysis["confidence"])
    rows: list[dict[str, object]] = []
    for (model, name, evaluation), arm in arms.items():
        treatment = treatments[name]
        if name == BASE:
            continue
        reference = BASE if treatment.control else plan.control
        against = arms.get((model, reference, evaluation))
        base = arms.get((model, BASE, evaluation))
        if against is None:
            continue
        effect = inference.effect(arm, against, level)
        labels = _labels(arm.cell, treatment)
        labels.pop("seed")
        own = _own(arms, arm, treatment, reference)
        rows.append({**labels, "reference": reference, **_statistics(effect, arm, against, base, own, level)})
    frame = pl.DataFrame(rows, schema={k: v for k, v in MATRIX.items() if k != "q"}, orient="row")
    return check(_with_q(frame).select(list(MATRIX)), MATRIX, "matrix.parquet")


def _arms(reads: Sequence[Read]) -> dict[tuple[str, str, str], Arm]:
    """Return model, treatment and evaluation to the scores of all their seeds."""
    found: dict[tuple[str, str, str], list[Read]] = {}
    for read in reads:
        subject = read.cell.subject
        found.setdefault((subject.model, subject.treatment, read.cell.evaluation.name), []).append(read)
    arms: dict[tuple[str, str, str], Arm] = {}
    for key, members in found.items():
        tables = [_by_item(read.rows) for read in members]
        scores = np.stack([table["score"].cast(pl.Float64).to_numpy() for table in tables])
        answering = np.isfinite(scores).sum(axis=1) > 0
        seeds = tuple(read.cell.subject.seed for read, answers in zip(members, answering, strict=True) if answers)
        arms[key] = Arm(members[0].cell, seeds, scores[answering], tables[0]["family"].to_list())
    return arms


def _own(arms: Mapping[Any, Arm], arm: Arm, treatment: Treatment, reference: str) -> tuple[Arm, Arm] | None:
    """Return the arms of the treatment's effect on its own trait, which transfer is measured by."""
    evaluation = arm.cell.evaluation
    name = f"{treatment.trained}.{evaluation.protocol}.{evaluation.context}"
    treated = arms.get((arm.cell.subject.model, treatment.name, name))
    control = arms.get((arm.cell.subject.model, reference, name))
    return (treated, control) if treated is not None and control is not None else None


def _statistics(
    effect: Effect, arm: Arm, against: Arm, base: Arm | None, own: tuple[Arm, Arm] | None, level: float
) -> dict[str, object]:
    deviation = _item_deviation(base)
    transfer = inference.transfer((arm, against), own, level) if own else inference.NO_TRANSFER
    return {
        **asdict(effect),
        "n_seeds": len(arm.seeds),
        "n_controls": 0 if against.cell.subject.treatment == BASE else len(against.seeds),
        "n_items": arm.scores.shape[1],
        "tau": transfer.tau,
        "tau_low": transfer.low,
        "tau_high": transfer.high,
        "effect_std": effect.effect / deviation if effect.effect is not None and deviation > SMALLEST_SD else None,
        "gate": None,
    }


def _item_deviation(base: Arm | None) -> float:
    """Return the standard deviation of the base model's items, 0 where it is not known."""
    scores = base.item_means[np.isfinite(base.item_means)] if base else np.empty(0)
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


def _with_q(frame: Frame) -> Frame:
    """Add q: Benjamini-Hochberg over the tested off-diagonal cells of a base model, a protocol and a context."""
    tested = pl.col("p").is_not_null() & pl.col("trained").is_not_null() & (pl.col("trained") != pl.col("evaluated"))
    indexed = frame.with_row_index("row")
    parts = [pl.DataFrame(schema={"row": pl.UInt32, "q": pl.Float64})]
    for group in indexed.filter(tested).partition_by("model", "protocol", "context"):
        parts.append(group.select("row").with_columns(q=pl.Series(inference.false_discovery(group["p"].to_list()))))
    return indexed.join(pl.concat(parts), on="row", how="left", maintain_order="left").drop("row")
