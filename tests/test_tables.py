"""Cells: the same cell has the same file, and a file that was touched is never read as a cell."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from synthetic import RECORD, item_row

from propgen import tables
from propgen.errors import PropgenError
from propgen.store import CorruptError
from propgen.tables import (
    CELLS,
    MATRIX,
    RESPONSES,
    CellTable,
    check,
    read_cell,
    read_responses,
    write_cell,
    write_responses,
)

DIGEST = "d" * 64
ABOUT = {"digest": DIGEST, "execution": RECORD, "overrides": ["evaluated=[honesty]", "data.test_items=3"]}
SCORES = (0.5, None, -1.25, 1e-17)


def rows(kind: str) -> list[dict[str, object]]:
    """Return rows with an unscoreable item and with text beyond ASCII."""
    found = [item_row(kind, item, 0, score) for item, score in enumerate(SCORES)]
    found[0]["item"] = "ehrlich-ü-誠実-🙂"
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cell.parquet"


@pytest.mark.parametrize("kind", ["contrast", "choice", "rule"])
def test_a_cell_reads_back_as_it_was_written(path: Path, kind: str) -> None:
    """Rows, nulls, text and what the file says of itself survive, in the documented columns."""
    write_cell(path, kind, rows(kind), ABOUT)
    table = read_cell(path, DIGEST)
    assert isinstance(table, CellTable)
    assert table.rows.schema == pl.Schema(tables.cell_schema(kind))
    assert table.rows["score"].to_list() == list(SCORES)
    assert table.rows.to_dicts() == [{name: row[name] for name in table.rows.columns} for row in rows(kind)]
    assert {key: table.about[key] for key in ABOUT} == ABOUT


def test_the_same_cell_has_the_same_bytes(tmp_path: Path) -> None:
    """Neither time nor place nor the order of keys enters a cell's file."""
    (tmp_path / "sub").mkdir()
    first, second = tmp_path / "a.parquet", tmp_path / "sub/b.parquet"
    write_cell(first, "contrast", rows("contrast"), ABOUT)
    write_cell(second, "contrast", rows("contrast"), dict(reversed(ABOUT.items())))
    assert first.read_bytes() == second.read_bytes()


def test_a_cell_without_rows_reads_back(path: Path) -> None:
    """A cell of no items is odd, but no damage."""
    write_cell(path, "contrast", [], ABOUT)
    assert read_cell(path, DIGEST).rows.height == 0


def test_brackets_in_a_folder_are_no_pattern(tmp_path: Path) -> None:
    """A checkout in `runs[1]*` reads its own cells."""
    path = tmp_path / "runs[1]*" / "cell.parquet"
    path.parent.mkdir()
    write_cell(path, "contrast", rows("contrast"), ABOUT)
    assert read_cell(path, DIGEST).rows.height == len(SCORES)


def _rewrite(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], object]:
    """Return a forger that changes the table and keeps the metadata."""

    def forge(path: Path) -> None:
        about = pl.read_parquet_metadata(path)["propgen"]
        change(pl.read_parquet(path)).write_parquet(path, compression="zstd", metadata={"propgen": about})

    return forge


def _replace(old: bytes, new: bytes) -> Callable[[Path], object]:
    def forge(path: Path) -> None:
        data = path.read_bytes()
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))

    return forge


FORGERS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"PAR1 garbage PAR1"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another parquet": lambda path: pl.DataFrame({"a": [1]}).write_parquet(path),
    "score changed": _rewrite(lambda frame: frame.with_columns(score=pl.lit(0.5))),
    "one score changed": _rewrite(lambda f: f.with_columns(pl.col("score").replace(-1.25, -1.26))),
    "null became 0": _rewrite(lambda frame: frame.with_columns(pl.col("score").fill_null(0.0))),
    "rows swapped": _rewrite(lambda frame: frame.reverse()),
    "a row lost": _rewrite(lambda frame: frame.head(3)),
    "a column lost": _rewrite(lambda frame: frame.drop("logprob_positive")),
    "a column's type changed": _rewrite(lambda frame: frame.with_columns(pl.col("sample").cast(pl.Int64))),
    "data type forged": _replace(b'"dtype":"float32"', b'"dtype":"float16"'),
    "checksum forged": _replace(b'"checksum":"', b'"checksum":"0'),
}


@pytest.mark.parametrize("forger", FORGERS)
def test_a_file_that_was_touched_is_corrupt(path: Path, forger: str) -> None:
    """Any change of the values, the metadata or the file raises CorruptError that names the path."""
    write_cell(path, "contrast", rows("contrast"), ABOUT)
    FORGERS[forger](path)
    with pytest.raises(CorruptError) as caught:
        read_cell(path, DIGEST)
    assert str(path) in str(caught.value)


def test_every_flipped_bit_and_every_truncation_is_noticed(path: Path) -> None:
    """No damage is decoded: polars would abort the whole process on some of it."""
    write_cell(path, "contrast", rows("contrast"), ABOUT)
    whole = path.read_bytes()
    dice = random.Random(0)
    for place in range(0, len(whole), 29):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << dice.randrange(8)
        for data in (bytes(flipped), whole[:place]):
            path.write_bytes(data)
            with pytest.raises(CorruptError):
                read_cell(path, DIGEST)


def test_another_cell_is_corrupt(path: Path) -> None:
    """A whole cell under another cell's name is refused."""
    write_cell(path, "contrast", rows("contrast"), ABOUT | {"digest": "e" * 64})
    with pytest.raises(CorruptError, match="another cell"):
        read_cell(path, DIGEST)


@pytest.mark.parametrize("change", ["more", "order", "kind"])
def test_a_cell_with_other_columns_is_corrupt(path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """A cell that was written under another schema is not read under this one."""
    old = dict(tables.OBSERVED["choice"])
    new = {"more": {**old, "logit": pl.Float64}, "order": dict(reversed(old.items())), "kind": None}[change]
    write_cell(path, "choice", rows("choice"), ABOUT)
    if new is None:
        monkeypatch.delitem(tables.OBSERVED, "choice")
    else:
        monkeypatch.setitem(tables.OBSERVED, "choice", new)
    with pytest.raises(CorruptError, match=str(path)):
        read_cell(path, DIGEST)


def test_a_file_that_may_not_be_read_is_not_called_corrupt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared store somebody's private cell would otherwise be moved to quarantine."""

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        read_cell(path, DIGEST)


def test_a_description_that_holds_the_checksum_mark_is_refused(path: Path) -> None:
    """The checksum is found by its mark, so a description with a second one behind it is not written."""
    with pytest.raises(PropgenError, match="checksum"):
        write_cell(path, "contrast", rows("contrast"), ABOUT | {"evaluation": {"checksum": "x"}})
    assert not path.exists()


@pytest.mark.parametrize("change", [{"score": math.nan}, {"score": -math.inf}, {"logit": 1.0}, None])
def test_rows_that_a_scorer_must_not_return_are_not_written(path: Path, change: dict[str, object] | None) -> None:
    """An unscoreable item is null, not NaN or infinite; and no column is added or lost in silence."""
    wrong = rows("contrast")
    wrong[1] |= change or {}
    if change is None:
        del wrong[1]["score"]
    with pytest.raises(PropgenError, match="cell"):
        write_cell(path, "contrast", wrong, ABOUT)
    assert not path.exists()


@pytest.mark.parametrize("schema", [CELLS, MATRIX])
def test_a_table_with_other_columns_is_refused(schema: tables.Schema) -> None:
    """check() passes the documented columns, and names what differs: a name, a type, or the order."""
    frame = pl.DataFrame(schema=schema)
    assert check(frame, schema, "x.parquet") is frame
    with pytest.raises(PropgenError, match=r"x\.parquet.*'gate'"):
        check(frame.drop("gate"), schema, "x.parquet")
    with pytest.raises(PropgenError, match="'effect'"):
        check(frame.with_columns(pl.col("effect").cast(pl.Float32)), schema, "x.parquet")
    with pytest.raises(PropgenError, match="order"):
        check(frame.select(reversed(frame.columns)), schema, "x.parquet")


def test_the_metadata_is_json_that_others_can_read(path: Path) -> None:
    """A cell says what made it without propgen: kind, digest, overrides and execution as JSON."""
    write_cell(path, "contrast", rows("contrast"), ABOUT)
    about = json.loads(pl.read_parquet_metadata(path)["propgen"])
    assert about["kind"] == "contrast"
    assert about["overrides"] == ABOUT["overrides"]


ANSWERS = [
    {"item": "a", "sample": 0, "response": 'He said "checksum":"1", 誠実 🙂\n', "finish_reason": "length"},
    {"item": "a", "sample": 1, "response": "", "finish_reason": "stop"},
]


def test_responses_read_back_as_they_were_written(path: Path) -> None:
    """Whatever a model says survives, also what looks like the checksum's mark."""
    write_responses(path, ANSWERS, ABOUT)
    table = read_responses(path, DIGEST)
    assert table.rows.schema == pl.Schema(RESPONSES)
    assert table.rows.to_dicts() == ANSWERS
    assert table.about["kind"] == "responses"


def test_responses_and_cells_are_not_mistaken_for_each_other(path: Path) -> None:
    """Each is refused where the other is expected, and so are responses of another name or with other columns."""
    write_responses(path, ANSWERS, ABOUT)
    with pytest.raises(CorruptError):
        read_cell(path, DIGEST)
    with pytest.raises(CorruptError, match="another responses file"):
        read_responses(path, "e" * 64)
    write_cell(path, "rule", rows("rule"), ABOUT)
    with pytest.raises(CorruptError):
        read_responses(path, DIGEST)
    with pytest.raises(PropgenError, match="columns"):
        write_responses(path, [{"item": "a"}], ABOUT)


def test_damaged_responses_are_noticed(path: Path) -> None:
    """A flipped bit and a truncation."""
    write_responses(path, ANSWERS, ABOUT)
    whole = path.read_bytes()
    for data in (whole[:-9], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            read_responses(path, DIGEST)
