"""Tables: their schemas, checked on write and on read, and cells, which carry their own identity and checksum."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
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
    "rule": {"response": pl.String, "finish_reason": pl.String},
}
"""What each kind of protocol saw, beside the columns that all cells have."""
RESPONSES: Schema = {"item": pl.String, "sample": pl.Int32, "response": pl.String, "finish_reason": pl.String}
"""What a model answered, before anything is scored."""

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
    "p_holm": pl.Float64,
    "fcr_low": pl.Float64,
    "fcr_high": pl.Float64,
    "effect_shrunk": pl.Float64,
    "p_equivalence": pl.Float64,
    "verdict": pl.String,
    "effect_logit": pl.Float64,
    "p_logit": pl.Float64,
    "gate": pl.String,
}
GATES: Schema = {
    "model": pl.String,
    "treatment": pl.String,
    "trained": pl.String,
    "regime": pl.String,
    "protocol": pl.String,
    "gate": pl.String,
    "verdict": pl.String,
    **dict.fromkeys(("value", "low", "high", "limit"), pl.Float64),
    "n_seeds": pl.Int64,
    "n_items": pl.Int64,
}
AGREEMENT: Schema = {
    "model": pl.String,
    "protocol": pl.String,
    "context": pl.String,
    "n_rows": pl.Int64,
    "n_columns": pl.Int64,
    "n_seeds": pl.Int64,
    **dict.fromkeys(("r", "r_low", "r_high", "r_split", "r_split_low", "r_split_high"), pl.Float64),
    **dict.fromkeys(("reliability", "reliability_low", "reliability_high"), pl.Float64),
}
CONTROLS: Schema = {
    "model": pl.String,
    "protocol": pl.String,
    "context": pl.String,
    "control": pl.String,
    "n_seeds": pl.Int64,
    **dict.fromkeys(("shift", "shift_low", "shift_high"), pl.Float64),
    **dict.fromkeys(("column_rms", "column_rms_low", "column_rms_high"), pl.Float64),
}
GENERALITY: Schema = {
    **dict.fromkeys(("model", "regime", "protocol", "context"), pl.String),
    **dict.fromkeys(("model_b", "regime_b", "protocol_b", "context_b", "across"), pl.String),
    **dict.fromkeys(("n_rows", "n_columns", "n_seeds", "n_seeds_b"), pl.Int64),
    **dict.fromkeys(("r", "r_low", "r_high", "p"), pl.Float64),
    "permutation": pl.String,
    **dict.fromkeys(("reliability", "reliability_low", "reliability_b", "reliability_b_low"), pl.Float64),
    "r_corrected": pl.Float64,
}
LEDGER: Schema = {
    **dict.fromkeys(("model", "protocol", "context", "component"), pl.String),
    **dict.fromkeys(("variance", "share", "low", "high"), pl.Float64),
}
_PATTERN: Schema = dict.fromkeys(("model", "regime", "protocol", "context"), pl.String)
STRUCTURE: Schema = {
    **_PATTERN,
    **dict.fromkeys(("n_rows", "n_columns", "n_seeds"), pl.Int64),
    **dict.fromkeys(("rms", "grand_mean", "row_variance", "column_variance", "residual_variance"), pl.Float64),
    **dict.fromkeys(("rank", "rank_left_out"), pl.Int64),
    **dict.fromkeys(("singular_1", "singular_2", "singular_3", "null"), pl.Float64),
    **dict.fromkeys(("reciprocity", "symmetric", "p_reciprocity", "silhouette"), pl.Float64),
    "clusters": pl.Int64,
}
MODELS: Schema = {**_PATTERN, "fit": pl.String, **dict.fromkeys(("rmse", "r2", "r2_se"), pl.Float64)}
LOADINGS: Schema = {
    **_PATTERN,
    "evaluated": pl.String,
    "component": pl.Int64,
    **dict.fromkeys(("loading", "low", "high"), pl.Float64),
    "cluster": pl.Int64,
    "place": pl.Int64,
}
COMOVEMENT: Schema = {
    **_PATTERN,
    "evaluated": pl.String,
    "other": pl.String,
    **dict.fromkeys(("r", "together"), pl.Float64),
}


MARK = b'"checksum":"'
"""Stands before a file's checksum in its metadata, which is the last place of the file where it occurs."""
UNSEALED = "0" * 64
"""The checksum of a file that is being written."""


class SchemaError(PropgenError):
    """A table has other columns than documented."""


class CellTable(NamedTuple):
    """The rows of a cell, or of responses, and what the file says of itself: digest, spec, overrides, execution."""

    rows: pl.DataFrame
    about: dict[str, Any]


def cell_schema(kind: str) -> Schema:
    """Return the columns of a cell of a protocol kind."""
    return {**ROW, **OBSERVED[kind]}


def write_cell(path: Path, kind: str, rows: Sequence[Mapping[str, object]], about: Mapping[str, Any]) -> None:
    """Write a cell with what it is, and a checksum of the whole file, in the file's metadata.

    The bytes depend on nothing else, so the same cell has the same file. Raises PropgenError for rows with other
    columns, or with a score that is neither finite nor null.
    """
    columns = cell_schema(kind)
    frame = _frame(path, f"{kind} cell", columns, rows)
    if not frame["score"].drop_nulls().is_finite().all():
        raise PropgenError(f"{path}: a score is not finite; an item that cannot be scored has none")
    _write(path, frame, {**about, "kind": kind})


def read_cell(path: Path, digest: str) -> CellTable:
    """Read a cell. Raises CorruptError if it is truncated, altered, or another cell than `digest`."""
    return _read(path, digest, "cell", cell_schema)


def write_responses(path: Path, rows: Sequence[Mapping[str, object]], about: Mapping[str, Any]) -> None:
    """Write responses like a cell. Raises PropgenError for rows with other columns."""
    _write(path, _frame(path, "responses file", RESPONSES, rows), {**about, "kind": "responses"})


def read_responses(path: Path, digest: str) -> CellTable:
    """Read responses. Raises CorruptError if they are truncated, altered, or others than `digest`."""
    return _read(path, digest, "responses file", {"responses": RESPONSES}.__getitem__)


def _frame(path: Path, what: str, columns: Schema, rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    if any(row.keys() != columns.keys() for row in rows):
        raise SchemaError(f"{path}: the rows of a {what} have the columns {', '.join(columns)}, and no others")
    return pl.DataFrame(rows, schema=columns, orient="row", strict=True)


def _write(path: Path, frame: pl.DataFrame, about: Mapping[str, Any]) -> None:
    text = canonical({**about, "checksum": UNSEALED}).decode()
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata={"propgen": text})
    before, checksum, after = _split(buffer.getvalue())
    if checksum != UNSEALED.encode():
        raise PropgenError(f"{path}: what describes a cell must not hold {MARK.decode()} a second time")
    path.write_bytes(before + _digits(before, after) + after)


def _read(path: Path, digest: str, what: str, schema: Callable[[str], Schema]) -> CellTable:
    """Read a file that carries its checksum, which is compared before anything is decoded.

    Some damage makes polars abort the process.
    """
    try:
        data = path.read_bytes()
        before, checksum, after = _split(data)
        if checksum != _digits(before, after):
            raise CorruptError(f"{path} is truncated or was altered: its bytes do not match their checksum")
        about = json.loads(pl.read_parquet_metadata(io.BytesIO(data))["propgen"])
        rows = pl.read_parquet(io.BytesIO(data))
        if about["digest"] != digest:
            raise CorruptError(f"{path} is another {what} than its name says")
        check(rows, schema(about["kind"]), str(path))
    except PermissionError:
        raise  # says nothing of the content
    except (OSError, KeyError, ValueError, TypeError, SchemaError, pl.exceptions.PolarsError) as error:
        raise CorruptError(f"{path} is damaged: {error}") from error
    return CellTable(rows, about)


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what stands before the checksum's digits, the digits, and what stands after them."""
    before, mark, after = data.rpartition(MARK)
    return before + mark, after[: len(UNSEALED)], after[len(UNSEALED) :]


def _digits(before: bytes, after: bytes) -> bytes:
    """Return the checksum of a file: the sha256 of all its bytes but the checksum's own."""
    return hashlib.sha256(before + after).hexdigest().encode()


def read_table(path: Path, schema: Schema) -> pl.DataFrame:
    """Read one of an experiment's tables. Raises PropgenError if it is missing or damaged."""
    if not path.is_file():
        raise PropgenError(f"{path} is missing; run the experiment with snakemake to make it")
    try:
        return check(pl.read_parquet(path), schema, str(path))
    except (pl.exceptions.PolarsError, SchemaError) as error:
        raise PropgenError(f"{path} is damaged; delete it and run the experiment with snakemake again") from error


def check(frame: pl.DataFrame, schema: Schema, what: str) -> pl.DataFrame:
    """Return a frame whose columns are the schema's, in order. Raises SchemaError otherwise."""
    expected = pl.Schema(schema)
    if frame.schema != expected:
        differing = sorted({*frame.schema.items()} ^ {*expected.items()}, key=str) or "their order"
        raise SchemaError(f"{what} has other columns than documented in results/README.md: {differing}")
    return frame
