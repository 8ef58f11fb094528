"""Items: an experiment's cells, read and put into one table with a row for each item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from propgen.digest import canonical
from propgen.errors import PropgenError
from propgen.files import replace
from propgen.plan import BASE, Cell, Plan, Treatment
from propgen.store import CorruptError, View
from propgen.tables import COLUMN, IDENTITY, Schema, read_cell

KEYS: Schema = {**IDENTITY, "seed": pl.Int64, **COLUMN}
"""What each row says of its cell."""


@dataclass(frozen=True)
class Items:
    """All items of an experiment's cells. about: what readers must be told; it stands in the file's metadata."""

    rows: pl.DataFrame
    about: dict[str, Any]


class Read(NamedTuple):
    """One cell that was read."""

    cell: Cell
    rows: pl.DataFrame
    execution: dict[str, Any]


def collect(plan: Plan, view: View, *, partial: bool = False) -> Items:
    """Read the plan's cells.

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
    rows = pl.concat([_labelled(read, treatments) for read in reads], how="diagonal_relaxed")
    return Items(rows, _about(plan, reads, missing))


def write_items(path: Path, items: Items) -> None:
    """Write the table, replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"propgen": canonical(items.about).decode()}
    replace(path, lambda fresh: items.rows.write_parquet(fresh, metadata=about))


def read_items(path: Path) -> Items:
    """Read the table that `write_items` wrote. Raises PropgenError if it cannot be read."""
    if not path.is_file():
        raise PropgenError(f"{path} is missing; run the experiment with snakemake to make it")
    try:
        about: dict[str, Any] = json.loads(pl.read_parquet_metadata(path)["propgen"])
        rows = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, KeyError, ValueError) as error:
        raise PropgenError(f"{path} is damaged; delete it and run the experiment with snakemake again") from error
    if absent := sorted({*KEYS, "item", "family", "score"} - set(rows.columns)):
        raise PropgenError(
            f"{path} lacks the column {absent[0]}; delete it and run the experiment with snakemake again"
        )
    return Items(rows, about)


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
        "digest": plan.items_digest,
        "missing": list(missing),
        "execution": [" ".join(kind) for kind in sorted(kinds)],
    }


def _labelled(read: Read, treatments: Mapping[str, Treatment]) -> pl.DataFrame:
    labels = _labels(read.cell, treatments[read.cell.subject.treatment])
    columns = [pl.lit(labels[name], dtype=kind).alias(name) for name, kind in KEYS.items()]  # type: ignore[arg-type]
    return read.rows.select(*columns, pl.exclude("context"))


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
