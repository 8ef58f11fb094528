"""Evaluation: the cells of one subject, each an object of its own as soon as it is finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from propgen import rule
from propgen.bank import Item
from propgen.config import Execution, Generation
from propgen.digest import VERSIONS
from propgen.errors import PropgenError
from propgen.imports import lean
from propgen.plan import Cell, Evaluation, Responses, Subject
from propgen.store import CELL, RESPONSES, CorruptError, View
from propgen.tables import CellTable, read_responses, write_cell, write_responses

log = logging.getLogger("propgen")


class Column(NamedTuple):
    """An evaluation with its items, and the overrides that choose it."""

    evaluation: Evaluation
    items: Sequence[Item]
    overrides: Sequence[str]


class Scorer:
    """A model that is loaded when the first cell needs it, and scores items in one data type on one device."""

    def __init__(self, base: Path, adapter: Path | None, dtype: str, device: str, execution: Execution) -> None:
        self.base, self.adapter = base, adapter
        self.dtype, self.device = dtype, device
        self.execution = execution

    @cached_property
    def _loaded(self) -> Any:
        with lean():
            import torch

            from propgen.model import load_frozen

        torch.set_num_threads(self.execution.threads)
        return load_frozen(self.base, self.adapter, self.dtype, self.device)

    def score(self, kind: str, items: Sequence[Item]) -> list[dict[str, object]]:
        """Return the rows of one cell, in the items' order."""
        from propgen.scoring import SCORERS

        model, tokenizer = self._loaded
        return SCORERS[kind](model, tokenizer, cast(Any, items), self.execution.token_budget)

    def generate(self, items: Sequence[Item], settings: Generation) -> list[dict[str, object]]:
        """Return the model's responses to the items' prompts: rows item, sample, response, finish_reason."""
        from propgen.generation import generate

        model, tokenizer = self._loaded
        return generate(model, tokenizer, items, settings, self.execution.token_budget)


def evaluate(view: View, subject: Subject, columns: Sequence[Column], scorer: Scorer, record: dict[str, Any]) -> None:
    """Make and link the missing cells of a subject.

    Cells that another process is making are left to it and linked at the end, so that two runs share the work.
    record: what is kept of the execution with each cell.
    """
    busy: list[Column] = []
    for number, column in enumerate(columns, 1):
        outcome = _make(view, subject, column, scorer, record, wait=False)
        if outcome == "busy":
            busy.append(column)
        log.info("%s %s (%d of %d): %s", subject.name, column.evaluation.name, number, len(columns), outcome)
    for column in busy:
        outcome = _make(view, subject, column, scorer, record, wait=True)
        log.info("%s %s, which another run was making: %s", subject.name, column.evaluation.name, outcome)


def _make(view: View, subject: Subject, column: Column, scorer: Scorer, record: dict[str, Any], *, wait: bool) -> str:
    cell = Cell(subject, column.evaluation)
    outcome = view.store.make(cell.digest, _builder(view, cell, column, scorer, record), cell=True, wait=wait)
    if outcome != "busy":
        view.link(cell.path, cell.digest, cell=True)
    return outcome


def _builder(view: View, cell: Cell, column: Column, scorer: Scorer, record: dict[str, Any]) -> Callable[[Path], None]:
    evaluation = cell.evaluation
    kind = evaluation.spec["kind"]

    def build(folder: Path) -> None:
        if evaluation.generation:
            answers = _responses(view, cell, column, scorer, record)
            rows, execution = rule.SCORERS[kind](column.items, answers.rows.to_dicts()), answers.about["execution"]
            if all(row["score"] is None for row in rows):
                log.warning("%s: no response could be scored, so this cell has no number", cell.path)
        else:
            rows, execution = scorer.score(kind, column.items), record
        about = _about(cell.digest, cell.subject, column, execution)
        about |= {"evaluation": evaluation.spec, "version": VERSIONS[kind]}
        write_cell(folder / CELL, kind, [{**row, "context": evaluation.context} for row in rows], about)

    return build


def _about(digest: str, subject: Subject, column: Column, record: dict[str, Any]) -> dict[str, Any]:
    """Return what cells and responses say of themselves."""
    return {
        "digest": digest,
        "subject": subject.digest,
        "overrides": [*subject.choice, *column.overrides],
        "execution": record,
    }


def _responses(view: View, cell: Cell, column: Column, scorer: Scorer, record: dict[str, Any]) -> CellTable:
    """Return the responses that a cell is scored from: those in the store, or newly generated ones.

    Raises PropgenError for damaged ones, which go to quarantine first.
    """
    responses = Responses(cell.subject, cell.evaluation)
    asked = responses.evaluation.generation or {}

    def build(folder: Path) -> None:
        settings = Generation(**{name: asked["config"][name] for name in Generation.__dataclass_fields__})
        rows = scorer.generate(column.items, settings)
        about = _about(responses.digest, cell.subject, column, record) | {"generation": asked}
        write_responses(folder / RESPONSES, rows, about)

    view.store.make(responses.digest, build, cell=True, file=RESPONSES)
    try:
        table = read_responses(view.store.payload(responses.digest, cell=True, file=RESPONSES), responses.digest)
    except CorruptError as error:
        place = view.store.quarantine(responses.digest, view.root / "quarantine")
        (view.root / responses.path).unlink(missing_ok=True)
        raise PropgenError(f"{responses.path}: {error}; moved to {place}, the next run makes it again") from error
    view.link(responses.path, responses.digest, cell=True, file=RESPONSES)
    return table
