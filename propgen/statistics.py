"""Statistics: what holds of an experiment's matrix as a whole, from its items and gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from propgen import pattern, power, structure
from propgen.files import replace, write_text
from propgen.gates import FAILED, verdicts
from propgen.generality import generality
from propgen.ledger import ledger
from propgen.plan import PROBE, Plan
from propgen.sheet import sheets


def tabulate(plan: Plan, items: pl.DataFrame, gates: pl.DataFrame) -> Mapping[str, pl.DataFrame]:
    """Return every table of statistics by name. Rows that failed a gate are left out."""
    sound = _sound(items.filter(pl.col("context") != PROBE), gates)
    found = sheets(sound, plan.control)
    return {
        "agreement": structure.agreement(sound),
        "controls": structure.controls(sound),
        "power": power.tabulate(found.values(), float(plan.analysis["alpha"])),
        "generality": generality(found.values()),
        "ledger": ledger(found.values()),
        **pattern.tabulate(found.values(), float(plan.analysis["confidence"]), plan.valences),
    }


def _sound(items: pl.DataFrame, gates: pl.DataFrame) -> pl.DataFrame:
    """Return the items of rows that failed no gate."""
    failed = [key for key, verdict in verdicts(gates).items() if verdict.startswith(FAILED)]
    keys = ("model", "treatment", "protocol")
    gone = pl.DataFrame(failed, schema=dict.fromkeys(keys, pl.String), orient="row")
    return items.join(gone, on=keys, how="anti", maintain_order="left")


def write(folder: Path, tables: Mapping[str, pl.DataFrame], page: str) -> None:
    """Write tables of statistics and the page that tells of them, each replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        replace(folder / f"{name}.parquet", frame.write_parquet)
    write_text(folder / "summary.md", page)
