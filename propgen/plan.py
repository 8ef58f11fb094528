"""The plan: from an experiment to its treatments, finetunes and cells, each with a digest, a path and its inputs.

Planning is pure: it reads configs and banks, imports no torch, and asks no store what exists (that is `survey`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

from propgen.digest import SHORT, VERSIONS, cell_digest, digest, responses_digest

BASE = "base"
"""The treatment that is none: the base model itself."""

PROBE = "probe"
"""The context of evaluations that are no columns of the matrix: they tell whether a finetune is sound."""

GENERATING = ("rule",)
"""Kinds of protocol that score what a model answers, each with its scorer in `propgen.rule`."""

PROTOCOLS = ("contrast", "choice", *GENERATING)
"""Kinds of protocol; the others have their scorers in `propgen.scoring`."""

CHARTS = ("comovement", "power", "ledger")
"""Figures of each model, protocol and context beside its heatmap, each drawn by a function of `propgen.charts`."""

FOLDERS = {"model": "models", "dataset": "datasets", "finetune": "adapters", "evaluate": "cells"}
"""Stage to its folder below `results/store/`."""


@dataclass(frozen=True)
class Artifact:
    """Something that a stage makes: a base model, a dataset or an adapter.

    name: its readable path below its stage's folder. spec: what determines it, as JSON. inputs: paths of the artifacts
    that it is made from, below `results/store/`. choice: the Hydra overrides that choose it.
    """

    stage: str
    name: str
    digest: str
    spec: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict[str, str])
    choice: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path below `results/store/`."""
        return f"{FOLDERS[self.stage]}/{self.name}"


@dataclass(frozen=True)
class Treatment:
    """trait x regime x variant x dose: a row of the matrix. trained: None where no single trait is trained."""

    name: str
    regime: str
    trained: str | None = None
    control: bool = False
    variant: str | None = None
    dose: float | None = None


def row_label(trained: str | None, variant: str | None) -> str:
    """Return how a row of one regime is called: its trait, with its training set where that has a name."""
    return ".".join(filter(None, (trained, variant)))


@dataclass(frozen=True)
class Subject:
    """What is evaluated: one finetune of a base model, or the base model (then `digest` is the model's).

    name: `<model>/<treatment>/seed<k>-<digest>`, its path below adapters/ and cells/.
    """

    name: str
    model: str
    treatment: str
    seed: int
    digest: str
    model_path: str
    choice: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """trait x protocol x context: a column of the matrix. items: how many. unit, label: of its score."""

    name: str
    trait: str
    protocol: str
    context: str
    digest: str
    spec: dict[str, Any]
    items: int
    unit: str
    label: str

    @property
    def generation(self) -> dict[str, Any] | None:
        """The spec of the responses that are scored, None where nothing is generated."""
        return self.spec["config"].get("generation")


@dataclass(frozen=True)
class Cell:
    """One subject under one evaluation."""

    subject: Subject
    evaluation: Evaluation

    @property
    def digest(self) -> str:
        """The cell's name in the store."""
        return cell_digest(self.subject.digest, self.evaluation.digest)

    @property
    def path(self) -> str:
        """Path below `results/store/`. The folder names the adapter and the file the evaluation, as readers look."""
        return f"cells/{self.subject.name}/{cell_file(self.evaluation)}"


@dataclass(frozen=True)
class Responses:
    """What one subject answers to the prompts of an evaluation whose protocol generates."""

    subject: Subject
    evaluation: Evaluation

    @property
    def generation(self) -> str:
        """The digest of what was asked and how; a changed rule leaves it as it is."""
        return digest(self.evaluation.generation)

    @property
    def digest(self) -> str:
        """The responses' name in the store."""
        return responses_digest(self.subject.digest, self.generation)

    @property
    def path(self) -> str:
        """Path below `results/store/`. The folder names the adapter and the file what was asked."""
        return f"responses/{self.subject.name}/{self.evaluation.name}-{self.generation[:SHORT]}.parquet"


def cell_file(evaluation: Evaluation) -> str:
    """Return the file name of an evaluation's cells."""
    return f"{evaluation.name}-{evaluation.digest[:SHORT]}.parquet"


@dataclass(frozen=True)
class Plan:
    """An experiment, spelled out. Subjects of a model are its base, its controls, then its treatments by seed.

    origins: what its base models are made from, inputs first: other base models, datasets and full finetunes.
    valences: whether a trait is socially good (1), bad (-1) or neither.
    """

    name: str
    experiment: str
    store: str
    treatments: tuple[Treatment, ...]
    models: tuple[Artifact, ...]
    datasets: tuple[Artifact, ...]
    adapters: tuple[Artifact, ...]
    subjects: tuple[Subject, ...]
    evaluations: tuple[Evaluation, ...]
    analysis: dict[str, Any]
    style: dict[str, Any]
    control: str
    origins: tuple[Artifact, ...] = ()
    valences: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def artifacts(self) -> Iterator[Artifact]:
        """Everything but the cells, each once, inputs before what is made from them."""
        everything = (*self.origins, *self.models, *self.datasets, *self.adapters)
        yield from {item.path: item for item in everything}.values()

    @property
    def cells(self) -> Iterator[Cell]:
        """All cells, row by row."""
        return (Cell(subject, evaluation) for subject in self.subjects for evaluation in self.evaluations)

    @property
    def responses(self) -> Iterator[Responses]:
        """All responses that cells are scored from."""
        columns = [evaluation for evaluation in self.evaluations if evaluation.generation]
        return (Responses(subject, evaluation) for subject in self.subjects for evaluation in columns)

    def treatment(self, name: str) -> Treatment:
        """Return a treatment by name."""
        return next(treatment for treatment in self.treatments if treatment.name == name)

    @cached_property
    def items_digest(self) -> str:
        """What determines the table of items: the cells, and how they are laid out."""
        rows = [(s.name, s.digest, asdict(self.treatment(s.treatment))) for s in self.subjects]
        columns = [(e.name, e.digest) for e in self.evaluations]
        return digest([VERSIONS["items"], self.name, self.control, rows, columns])

    @cached_property
    def gates_digest(self) -> str:
        """What determines the gates: the items, and the limits."""
        return digest([VERSIONS["gates"], self.items_digest, self.analysis.get("gates")])

    @cached_property
    def matrix_digest(self) -> str:
        """What determines the matrix: the items, the gates, and the plan of analysis."""
        return digest([VERSIONS["matrix"], self.gates_digest, self.analysis])

    @cached_property
    def statistics_digest(self) -> str:
        """What determines the statistics of the whole matrix: its tables."""
        return digest([VERSIONS["statistics"], self.matrix_digest, self.valences])

    @cached_property
    def figures_digest(self) -> str:
        """What determines the figures: the tables, the protocols' words, and the style."""
        words = [(e.unit, e.label) for e in self.evaluations]
        return digest([VERSIONS["figures"], self.statistics_digest, self.style, words])

    @property
    def columns(self) -> tuple[Evaluation, ...]:
        """The matrix's columns: all evaluations but the probes."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.context != PROBE)

    @property
    def panels(self) -> list[tuple[str, str, str, str]]:
        """Figure name, model, protocol and context of each heatmap; the first one is plainly `heatmap`."""
        models = dict.fromkeys(subject.model for subject in self.subjects)
        views = list(dict.fromkeys((e.protocol, e.context) for e in self.columns))
        found = [(model, *view) for model in models for view in views]
        return [("heatmap" if i == 0 else f"heatmap-{'-'.join(panel)}", *panel) for i, panel in enumerate(found)]

    @property
    def charts(self) -> list[tuple[str, str, str, str, str]]:
        """Kind, figure name, model, protocol and context of each figure beside the heatmaps."""
        panels = self.panels
        return [(kind, name.replace("heatmap", kind, 1), m, p, c) for kind in CHARTS for name, m, p, c in panels]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same plan."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the plan that `as_json` wrote."""
        kinds = {"treatments": Treatment, "models": Artifact, "datasets": Artifact, "adapters": Artifact}
        kinds["origins"] = Artifact
        kinds |= {"subjects": Subject, "evaluations": Evaluation}
        rows: dict[str, Any] = {key: tuple(kind(**_tuples(row)) for row in value[key]) for key, kind in kinds.items()}
        return cls(**{**value, **rows})


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an element's fields with the lists that JSON made of its tuples turned back."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
