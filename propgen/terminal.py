"""The plan and the state of the matrix, shown in the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from propgen.compose import Composition, compose, find_project
from propgen.plan import Plan, Planner, Subject
from propgen.store import Store, View
from propgen.survey import Survey, reason, survey
from propgen.workflow import open_view

TRAIN_TOKENS_PER_SECOND = 230.0
ITEMS_PER_SECOND = 8.0
START_SECONDS = 8.0
"""Assumed where nothing was measured yet: a 135 M model on one core with bfloat16 products."""
CHARACTERS_PER_TOKEN = 4.4
TEMPLATE_TOKENS = 40
REASONS_SHOWN = 8


@dataclass(frozen=True)
class Estimate:
    """Seconds of one core (or GPU) that missing finetunes and cells may take, and whether speeds were measured here."""

    finetune: float
    evaluate: float
    measured: bool


def show_plan(overrides: Sequence[str]) -> None:
    """Print what would run, why, and how long it may take."""
    planner, plan, found, view = _look(overrides)
    console = Console()
    console.print(f"[bold]{plan.name}[/]: {_span(plan)}")
    console.print(_counts(plan, found))
    for item in found.needed[:REASONS_SHOWN]:
        console.print(f"  {item.stage} {item.name}: {reason(item, view.root)}", highlight=False)
    if len(found.needed) > REASONS_SHOWN:
        console.print(f"  ... and {len(found.needed) - REASONS_SHOWN} more")
    if not found.cells:
        console.print("Every cell is there; `snakemake --cores all` redraws tables and figures where they are older.")
        return
    cost = estimate(planner, found, view)
    basis = "measured on earlier jobs" if cost.measured else "assumed for a 135 M model on one core, none ran here yet"
    console.print(
        f"About {_duration(cost.finetune)} of finetuning and {_duration(cost.evaluate)} of evaluation, "
        f"divided by the jobs that run at once ({basis})."
    )


def show_status(overrides: Sequence[str]) -> None:
    """Print a grid of subjects by evaluations: a dot for a cell that is there, a circle for one to run."""
    _, plan, found, _ = _look(overrides)
    console = Console()
    table = Table(title=f"{plan.name}: {_span(plan)}", title_justify="left")
    table.add_column("finetune", no_wrap=True)
    for evaluation in plan.evaluations:
        table.add_column(evaluation.name, justify="center", overflow="fold")
    missing_artifacts = {item.name for item in found.missing("finetune")}
    for subject in plan.subjects:
        absent = set(found.cells.get(subject.name, ()))
        marks = ["[yellow]○[/]" if e.name in absent else "[green]●[/]" for e in plan.evaluations]
        table.add_row(_label(subject, subject.name in missing_artifacts and bool(absent)), *marks)
    console.print(table)
    console.print("● present   ○ to run   (*) its finetune is to run too")


def estimate(planner: Planner, found: Survey, view: View) -> Estimate:
    """Estimate the work from texts' lengths and from the speeds that earlier jobs recorded."""
    config = planner.config
    speeds = _recorded_speeds(found.plan, view.store)
    train = median(speeds) if speeds else TRAIN_TOKENS_PER_SECOND
    tokens = 0.0
    treatments = {treatment.name: treatment for treatment in found.plan.treatments}
    jobs = found.missing("finetune")
    for adapter in jobs:
        examples = planner.examples(treatments[adapter.name.split("/")[1]])
        texts = sum(len(turn["content"]) for example in examples for turn in example["messages"])
        tokens += config.training.epochs * (texts / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS * len(examples))
    items = sum(cell.evaluation.items for cell in found.missing_cells)
    starts = sum(len(group.subjects) for group in found.groups)
    return Estimate(
        tokens / train + START_SECONDS * len(jobs), items / ITEMS_PER_SECOND + START_SECONDS * starts, bool(speeds)
    )


def _look(overrides: Sequence[str]) -> tuple[Planner, Plan, Survey, View]:
    project = find_project()
    os.chdir(project.root)
    composition: Composition = compose(project, overrides)
    planner = Planner(project, composition)
    plan = planner.plan()
    view = open_view(project, plan.store)
    return planner, plan, survey(plan, view), view


def _recorded_speeds(plan: Plan, store: Store) -> list[float]:
    """Return tokens/s of finetunes that are there."""
    speeds: list[float] = []
    for adapter in plan.adapters:
        timing: Path = store.folder(adapter.digest) / "timing.json"
        if timing.is_file():
            speeds.append(float(json.loads(timing.read_text())["tokens_per_second"]))
    return speeds


def _counts(plan: Plan, found: Survey) -> Table:
    table = Table()
    for heading in ("stage", "planned", "present", "to run"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    needed = [item.stage for item in found.needed]
    for stage, label in (("model", "base models"), ("dataset", "datasets"), ("finetune", "finetunes")):
        planned = sum(item.stage == stage for item in plan.artifacts)
        table.add_row(label, str(planned), str(planned - len(found.missing(stage))), str(needed.count(stage)))
    planned, missing = len(plan.subjects) * len(plan.evaluations), sum(map(len, found.cells.values()))
    table.add_row("cells", str(planned), str(planned - missing), str(missing))
    return table


def _span(plan: Plan) -> str:
    models = len(plan.models)
    return (
        f"{len(plan.treatments) - 1} treatments with controls x {len(plan.evaluations)} evaluations x "
        f"{models} base model{'s' if models > 1 else ''}"
    )


def _label(subject: Subject, trains: bool) -> str:
    return f"{subject.model} {subject.treatment} seed {subject.seed}{' (*)' if trains else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
