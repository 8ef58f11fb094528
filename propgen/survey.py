"""The survey: what of a plan exists, what is missing and needed, and why it would run."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from propgen.digest import SHORT, differences
from propgen.plan import BASE, Artifact, Cell, Evaluation, Plan, Responses, Subject
from propgen.store import RESPONSES, View


@dataclass(frozen=True)
class Group:
    """Subjects that miss the same evaluations, so that one job per subject can compute exactly those."""

    subjects: tuple[Subject, ...]
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Survey:
    """What is missing of a plan.

    artifacts: names of missing models, datasets and adapters. cells: subject name to names of missing evaluations.
    """

    plan: Plan
    artifacts: frozenset[str]
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def missing(self, stage: str) -> list[Artifact]:
        """Return the missing artifacts of a stage."""
        return [item for item in self.plan.artifacts if item.stage == stage and item.path in self.artifacts]

    @cached_property
    def groups(self) -> list[Group]:
        """Return the missing cells, by finetunes that miss the same evaluations; base models stand apart."""
        columns = {evaluation.name: evaluation for evaluation in self.plan.evaluations}
        found: dict[tuple[bool, tuple[str, ...]], list[Subject]] = {}
        for subject in self.plan.subjects:
            if names := self.cells.get(subject.name):
                found.setdefault((is_base(subject), names), []).append(subject)
        return [
            Group(tuple(subjects), tuple(columns[name] for name in names)) for (_, names), subjects in found.items()
        ]

    @property
    def missing_cells(self) -> list[Cell]:
        """Return every missing cell."""
        return [
            Cell(subject, evaluation)
            for group in self.groups
            for subject in group.subjects
            for evaluation in group.evaluations
        ]

    @property
    def needed(self) -> list[Artifact]:
        """Return the missing artifacts that missing cells need: a present one needs nothing any more."""
        planned = {item.path: item for item in self.plan.artifacts}
        adapters = {adapter.name: adapter.path for adapter in self.plan.adapters}
        asked = [path for s in self._working for path in (s.model_path, adapters.get(s.name)) if path]
        wanted: set[str] = set()
        while asked:
            path = asked.pop()
            if path in self.artifacts and path not in wanted:
                wanted.add(path)
                asked += planned[path].inputs.values()
        return [item for path, item in planned.items() if path in wanted]

    @property
    def _working(self) -> list[Subject]:
        """Return the subjects that miss cells."""
        return [subject for group in self.groups for subject in group.subjects]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same survey."""
        return {"plan": self.plan.as_json(), "artifacts": sorted(self.artifacts), "cells": self.cells}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the survey that `as_json` wrote."""
        cells = {name: tuple(names) for name, names in value["cells"].items()}
        return cls(Plan.from_json(value["plan"]), frozenset(value["artifacts"]), cells)


def is_base(subject: Subject) -> bool:
    """Return whether a subject is a base model."""
    return subject.treatment == BASE


def survey(plan: Plan, view: View, *, relink: bool = False, clear: bool = False) -> Survey:
    """Look up what exists.

    relink: make the view's links onto whatever has its object. clear: take away what stands where something is missing
    (dangling links, foreign files), since Snakemake would take it for the thing itself.
    """
    objects = view.store.listing()

    def present(path: str, digest: str, cell: bool) -> bool:
        if view.shows(path, digest, cell=cell):
            return True
        if digest not in objects or not view.store.payload(digest, cell=cell).is_file():
            if clear:
                view.clear(path)
            return False
        if relink:
            view.link(path, digest, cell=cell)
        return True

    artifacts = frozenset(a.path for a in plan.artifacts if not present(a.path, a.digest, False))
    cells: dict[str, tuple[str, ...]] = {}
    for subject in plan.subjects:
        row = (Cell(subject, evaluation) for evaluation in plan.evaluations)
        absent = tuple(cell.evaluation.name for cell in row if not present(cell.path, cell.digest, True))
        if absent:
            cells[subject.name] = absent
    for responses in plan.responses if relink else ():
        _relink_responses(responses, view, objects)
    return Survey(plan, artifacts, cells)


def _relink_responses(responses: Responses, view: View, objects: Collection[str]) -> None:
    """Link responses that are there; missing ones are nobody's input, and are generated when a cell needs them."""
    name, path = responses.digest, responses.path
    shown = view.shows(path, name, cell=True, file=RESPONSES)
    if not shown and name in objects and view.store.payload(name, cell=True, file=RESPONSES).is_file():
        view.link(path, name, cell=True, file=RESPONSES)


def reason(item: Artifact, root: Path) -> str:
    """Say why a missing artifact would run: it is new, or what differs from its nearest relative in the view."""
    folder = root / Path(item.path).parent
    stem = Path(item.name).name[: -SHORT - 1]
    relatives = [path for path in folder.glob(f"{stem}-{'?' * SHORT}") if path.name != Path(item.name).name]
    for path in sorted(relatives, key=_changed, reverse=True):
        try:
            old = yaml.safe_load((path / "config.yaml").read_text())["spec"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        if isinstance(old, dict) and (found := differences(old, json.loads(json.dumps(item.spec)))):
            return "changed: " + ", ".join(found)
    return "new"


def _changed(path: Path) -> float:
    return path.lstat().st_mtime
