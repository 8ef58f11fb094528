"""Evaluation: the cells of one subject, each an object of its own as soon as it is finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from propgen.bank import Item
from propgen.config import Execution
from propgen.digest import VERSIONS
from propgen.imports import lean
from propgen.plan import Cell, Evaluation, Subject
from propgen.store import CELL, View
from propgen.tables import write_cell

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
    outcome = view.store.make(cell.digest, _builder(cell, column, scorer, record), cell=True, wait=wait)
    if outcome != "busy":
        view.link(cell.path, cell.digest, cell=True)
    return outcome


def _builder(cell: Cell, column: Column, scorer: Scorer, record: dict[str, Any]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        evaluation, subject = cell.evaluation, cell.subject
        kind = evaluation.spec["kind"]
        rows = [{**row, "context": evaluation.context} for row in scorer.score(kind, column.items)]
        about = {
            "digest": cell.digest,
            "subject": subject.digest,
            "evaluation": evaluation.spec,
            "overrides": [*subject.choice, *column.overrides],
            "execution": record,
            "version": VERSIONS[kind],
        }
        write_cell(folder / CELL, kind, rows, about)

    return build
