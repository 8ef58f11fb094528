"""Tables: their schemas, checked on write and on read, and cells, which carry their own identity and checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from propgen.digest import canonical
from propgen.errors import PropgenError
from propgen.store import CorruptError

Schema = Mapping[str, pl.DataType | type[pl.DataType]]

ITEM: Schema = {"item": pl.String, "family": pl.String, "domain": pl.String, "context": pl.String}
ROW: Schema = {**ITEM, "sample": pl.Int32, "score": pl.Float64}
OBSERVED: dict[str, Schema] = {
    "contrast": {
        "logprob_positive": pl.Float64,
        "logprob_negative": pl.Float64,
        "tokens_positive": pl.Int32,
        "tokens_negative": pl.Int32,
    },
    "choice": {"order": pl.String, "p_positive": pl.Float64},
}
"""What each kind of protocol saw, beside the columns that all cells have."""

IDENTITY: Schema = {
    "model": pl.String,
    "trained": pl.String,
    "regime": pl.String,
    "variant": pl.String,
    "dose": pl.Float64,
    "treatment": pl.String,
}
COLUMN: Schema = {"evaluated": pl.String, "protocol": pl.String, "context": pl.String, "evaluation": pl.String}
CELLS: Schema = {
    **IDENTITY,
    "seed": pl.Int64,
    **COLUMN,
    "n_items": pl.Int64,
    "n_scored": pl.Int64,
    "score": pl.Float64,
    "sd_items": pl.Float64,
    "base": pl.Float64,
    "control": pl.Float64,
    "effect": pl.Float64,
    "preference": pl.Float64,
    "gate": pl.String,
    "adapter": pl.String,
    "cell": pl.String,
}
MATRIX: Schema = {
    **IDENTITY,
    **COLUMN,
    "reference": pl.String,
    "effect": pl.Float64,
    "se": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "p": pl.Float64,
    "q": pl.Float64,
    "n_seeds": pl.Int64,
    "n_controls": pl.Int64,
    "n_items": pl.Int64,
    "mde": pl.Float64,
    "tau": pl.Float64,
    "tau_low": pl.Float64,
    "tau_high": pl.Float64,
    "effect_std": pl.Float64,
    "gate": pl.String,
}


class CellTable(NamedTuple):
    """A cell's rows, and what its file says of itself: digest, spec, overrides, execution."""

    rows: pl.DataFrame
    about: dict[str, Any]


def cell_schema(kind: str) -> Schema:
    """Return the columns of a cell of a protocol kind."""
    return {**ROW, **OBSERVED[kind]}


def write_cell(path: Path, kind: str, rows: Sequence[Mapping[str, object]], about: Mapping[str, Any]) -> None:
    """Write a cell with what it is, and a checksum of its values, in the file's metadata.

    The bytes depend on nothing else, so the same cell has the same file.
    """
    frame = pl.DataFrame(rows, schema=cell_schema(kind), orient="row", strict=True)
    text = canonical({**about, "kind": kind, "checksum": _checksum(frame)}).decode()
    frame.write_parquet(path, compression="zstd", metadata={"propgen": text})


def read_cell(path: Path, digest: str) -> CellTable:
    """Read a cell. Raises CorruptError if it is truncated, altered, or another cell than `digest`."""
    try:
        about = json.loads(pl.read_parquet_metadata(path)["propgen"])
        rows = pl.read_parquet(path)
        if about["digest"] != digest:
            raise CorruptError(f"{path} is another cell than its name says")
        if dict(rows.schema) != dict(pl.Schema(cell_schema(about["kind"]))):
            raise CorruptError(f"{path} has other columns than a {about['kind']} cell")
        if _checksum(rows) != about["checksum"]:
            raise CorruptError(f"{path} was altered: its values do not match their checksum")
    except (OSError, KeyError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise CorruptError(f"{path} is damaged ({type(error).__name__})") from error
    return CellTable(rows, about)


def _checksum(frame: pl.DataFrame) -> str:
    """Return the sha256 of all values in order; NaN never occurs, since an unscoreable item is null."""
    return hashlib.sha256(canonical(frame.to_dict(as_series=False))).hexdigest()


def check(frame: pl.DataFrame, schema: Schema, what: str) -> pl.DataFrame:
    """Return a frame whose columns are the schema's, in order. Raises PropgenError otherwise."""
    expected = dict(pl.Schema(schema))
    if dict(frame.schema) != expected:
        differing = sorted({*frame.schema.items()} ^ {*expected.items()}, key=str)
        raise PropgenError(f"{what} has other columns than documented in results/README.md: {differing}")
    return frame
