"""The plan and the state of the matrix, shown in the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import polars as pl
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from propgen.compose import Composition, compose, find_project
from propgen.errors import InputError, PropgenError, nearest
from propgen.plan import PROBE, Cell, Evaluation, Plan, Responses, Subject
from propgen.planner import Planner
from propgen.sheet import VIEW
from propgen.store import RESPONSES, Store, View
from propgen.survey import Survey, is_base, reason, survey
from propgen.workflow import open_view

if TYPE_CHECKING:
    from propgen.audit import Audit  # scikit-learn takes a second to import

TRAIN_TOKENS_PER_SECOND = 230.0
ITEMS_PER_SECOND = 8.0
GENERATED_TOKENS_PER_SECOND = 200.0
START_SECONDS = 8.0
"""Assumed where nothing was measured yet: a 135 M model on one core with bfloat16 products."""
CHARACTERS_PER_TOKEN = 4.4
TEMPLATE_TOKENS = 40
REASONS_SHOWN = 8
MARKS, ASCII_MARKS = ("●", "○"), ("x", "-")
"""A cell that is present, and one to run; the latter pair for terminals without Unicode."""
AUDITED = (
    "near: items of which a text shares half of its three-word shingles with a text of another family.\n"
    "length: AUC with which the number of words tells an answer's pole; .5 is not at all.\n"
    "own: AUC of a bag of words learnt on training items, tried on test items.\n"
    "others: of bags of words learnt on each other trait that is no declared neighbour, and whose tells most."
)


POWERS_READ = (
    "Smallest effect, in the score's unit, that a test at alpha finds with 80 % power; in brackets, in a search among "
    "all off-diagonal cells (Bonferroni)."
)
SIMULATED = {
    "treated": "seeds",
    "controls": "controls",
    "items": "items",
    "repetitions": "tables",
    "coverage": "coverage",
    "false_discovery": "false discoveries",
    "power_error": "power error",
    "gate_hits": "collapsed gated",
    "gate_false": "healthy gated",
    "rank_hits": "rank found",
}
SIMULATED_READ = "Shares of 1; power error: percentage points between found and promised power."


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
        line = f"  {item.stage} {item.name}: {reason(item, view.root)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(found.needed) > REASONS_SHOWN:
        console.print(f"  ... and {len(found.needed) - REASONS_SHOWN} more")
    if not found.cells:
        console.print("Every cell is there; snakemake redraws tables and figures where they are older.")
        return
    cost = estimate(planner, found, view)
    basis = "measured on earlier jobs" if cost.measured else "assumed for a 135 M model on one core, none ran here yet"
    console.print(
        f"About {_duration(cost.finetune)} of finetuning and {_duration(cost.evaluate)} of evaluation, "
        f"divided by the jobs that run at once ({basis})."
    )


def show_status(overrides: Sequence[str]) -> None:
    """Print a grid of subjects by evaluations, which have numbers as headings: each cell is present or to run.

    As many evaluations as the terminal is wide stand beside each other, the others in further grids below.
    """
    _, plan, found, _ = _look(overrides)
    console = Console()
    console.print(f"[bold]{plan.name}[/]: {_span(plan)}")
    to_train = {item.name for item in found.needed if item.stage == "finetune"}
    labels = [_label(subject, subject.name in to_train) for subject in plan.subjects]
    room = console.width - max(map(len, labels))
    numbered = list(enumerate(plan.evaluations, 1))
    wide = len(str(len(numbered))) + 1
    count = max(1, room // wide)
    present, absent = MARKS if console.encoding.startswith("utf") else ASCII_MARKS
    for start in range(0, len(numbered), count):
        block = numbered[start : start + count]
        console.print(_grid(plan, found, labels, block, (f"[green]{present}[/]", f"[yellow]{absent}[/]")))
    console.print(
        Columns([f"{number:>{wide - 1}} {e.name}" for number, e in numbered], padding=(0, 3)), highlight=False
    )
    console.print(f"{present} present   {absent} to run   * its finetune is to run, too")


def _grid(
    plan: Plan, found: Survey, labels: Sequence[str], block: Sequence[tuple[int, Evaluation]], marks: tuple[str, str]
) -> Table:
    """Return the cells of some evaluations, under their numbers, with the rows of each base model together."""
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    for number, _ in block:
        table.add_column(str(number), justify="right", no_wrap=True)
    model = None
    for subject, label in zip(plan.subjects, labels, strict=True):
        if subject.model != model:
            model = subject.model
            table.add_row(_heading(plan, found, subject))
        missing = found.cells.get(subject.name, ())
        table.add_row(label, *(marks[evaluation.name in missing] for _, evaluation in block))
    return table


def estimate(planner: Planner, found: Survey, view: View) -> Estimate:
    """Estimate the work from texts' lengths and from the speeds that earlier jobs recorded."""
    speeds = _recorded_speeds(found.plan, view.store)
    train = median(speeds) if speeds else TRAIN_TOKENS_PER_SECOND
    tokens = 0.0
    jobs = [item for item in found.needed if item.stage == "finetune"]
    for adapter in jobs:
        examples = planner.examples(*planner.drawn[adapter.inputs["dataset"]])
        texts = sum(len(turn["content"]) for example in examples for turn in example["messages"])
        tokens += adapter.spec["config"]["epochs"] * (texts / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS * len(examples))
    starts = sum(len(group.subjects) for group in found.groups)
    scoring = sum(_seconds(cell, view.store) for cell in found.missing_cells)
    return Estimate(tokens / train + START_SECONDS * len(jobs), scoring + START_SECONDS * starts, bool(speeds))


def _seconds(cell: Cell, store: Store) -> float:
    """Return how long a cell may take; where responses are to be generated, with each as long as it may become."""
    items, asked = cell.evaluation.items, cell.evaluation.generation
    if asked is None:
        return items / ITEMS_PER_SECOND
    if store.payload(Responses(cell.subject, cell.evaluation).digest, cell=True, file=RESPONSES).is_file():
        return 0.0
    settings = asked["config"]
    return items * settings["samples"] * settings["max_tokens"] / GENERATED_TOKENS_PER_SECOND


def show_power(overrides: Sequence[str]) -> None:
    """Print the smallest effects that designs find, from a finished experiment's items or from stated defaults."""
    from propgen import power
    from propgen.items import read_items
    from propgen.sheet import sheets

    planner, plan, _, _ = _look(overrides)
    path, alpha = planner.project.results / plan.name / "items.parquet", float(plan.analysis["alpha"])
    console = Console()
    if path.is_file():
        rows = read_items(path).rows.filter(pl.col("context") != PROBE)
        found = power.tabulate(sheets(rows, plan.control).values(), alpha)
        console.print(f"From the seeds and items of {path.relative_to(planner.project.root)}.")
    else:
        cells = len(plan.columns) * sum(t.trained is not None for t in plan.treatments)
        assumed: dict[str, str] = dict(zip(VIEW, ("any model", "any protocol", "any context"), strict=True))
        found = power.table(assumed, power.DEFAULTS, cells, alpha)
        console.print(
            "Nothing is measured yet: standard deviations of 3 points between seeds, 10 of items, 12 of noise."
        )
    for view, part in found.group_by(VIEW, maintain_order=True):
        console.print(_power_table(" · ".join(map(str, view)), part))
    console.print(POWERS_READ, highlight=False, soft_wrap=True)


def _power_table(title: str, part: pl.DataFrame) -> Table:
    first = part.row(0, named=True)
    deviations = ", ".join(f"{name} {first[name]:.3g}" for name in ("seed", "control", "interaction", "residual"))
    items = sorted(part["n_items"].unique())
    table = Table(title=f"{title}  ({deviations})", box=box.SIMPLE_HEAD)
    for heading in ("seeds", "controls", *(f"{n} items" for n in items)):
        table.add_column(heading, justify="right")
    for (seeds, controls), rows in part.group_by("n_seeds", "n_controls", maintain_order=True):
        found = {r["n_items"]: (r["mde"], r["mde_corrected"]) for r in rows.iter_rows(named=True)}
        cells = ["no test" if None in found[n] else f"{found[n][0]:.2g} ({found[n][1]:.2g})" for n in items]
        table.add_row(str(seeds), str(controls), *cells)
    return table


def show_simulation(repetitions: int | None, *, as_json: bool) -> None:
    """Print how often the analysis is right in designs whose truth is known."""
    from propgen.simulate import SECONDS, simulate

    found = simulate(repetitions, SECONDS)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in SIMULATED.values():
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(*("" if row[key] is None else f"{row[key]:g}" for key in SIMULATED))
    Console().print(table)
    print(SIMULATED_READ)


def import_matrix(path: Path, name: str) -> None:
    """Bring a matrix without seeds into results/imported/NAME/, with all tables and a page of what they say."""
    from propgen.analysis import tabulate, write_tables
    from propgen.config import SLUG, Gates
    from propgen.gates import Rules, gates
    from propgen.gates import write as write_gates
    from propgen.importing import plan_of, read_forecast
    from propgen.items import write_items
    from propgen.statistics import tabulate as statistics
    from propgen.statistics import write as write_statistics
    from propgen.summary import summarise

    project = find_project()
    if not re.fullmatch(SLUG, name):
        raise InputError(f"'{name}' must match {SLUG}, since it becomes a folder in results/imported/")
    items = read_forecast(path)
    plan = plan_of(items, name, compose(project, []).config.analysis)
    judged = gates(items.rows, plan.control, Rules(**vars(Gates())))
    tables = tabulate(plan, items, judged)
    whole = statistics(plan, items.rows, judged)
    folder = project.results / "imported" / name
    write_items(folder / "items.parquet", items)
    write_gates(folder / "statistics", judged)
    write_tables(folder, tables)
    write_statistics(folder / "statistics", whole, summarise(plan, tables.matrix, judged, whole))
    print(f"{folder / 'statistics/summary.md'}")


def show_audit(traits: Sequence[str]) -> None:
    """Print measures of the banks of `traits`, by default all, beside those of all others.

    Raises InputError for an unknown trait, PropgenError for a measure beyond its limits.
    """
    from propgen.audit import audit

    project = find_project()
    known = project.options("trait")
    planner = Planner(project, compose(project, []))
    planner.compose_elements({"trait": known})
    known = [trait for trait in known if not planner.element("trait", trait).probe]
    neighbours = {trait: planner.element("trait", trait).neighbours for trait in known}
    for place, names in [
        ("check-bank", traits),
        *((f"conf/trait/{t}.yaml: neighbours", n) for t, n in neighbours.items()),
    ]:
        for name in names:
            if name not in known:
                raise InputError(f"{place}: unknown trait '{name}'; {nearest(name, known)}")
    found = audit({trait: planner.bank(trait).items for trait in known}, neighbours)
    console = Console()
    console.print(_audit_table(found, traits or known))
    console.print(AUDITED, highlight=False, soft_wrap=True)
    faults = [fault for fault in found.faults if not traits or fault.partition(":")[0] in traits]
    if faults:
        raise PropgenError("; ".join(faults))


def _audit_table(found: Audit, traits: Sequence[str]) -> Table:
    table = Table("trait", "items", "near", "length", "own", "others", "most of others", box=box.SIMPLE_HEAD)
    for trait in traits:
        across = {a: found.vocabulary[a, b] for a, b in found.strangers if b == trait}
        farthest = max(across, key=lambda other: abs(across[other] - 0.5), default="")
        span = f"{min(across.values()):.2f}-{max(across.values()):.2f}" if across else ""
        own = found.vocabulary.get((trait, trait))
        cells = [str(found.items[trait]), str(len(found.duplicates[trait])), f"{found.length[trait]:.2f}"]
        table.add_row(trait, *cells, "" if own is None else f"{own:.2f}", span, farthest)
    return table


def _look(overrides: Sequence[str]) -> tuple[Planner, Plan, Survey, View]:
    project = find_project()
    os.chdir(project.root)
    composition: Composition = compose(project, overrides)
    planner = Planner(project, composition)
    plan = planner.plan()
    view = open_view(project, plan.store)
    return planner, plan, survey(plan, view), view


def _recorded_speeds(plan: Plan, store: Store) -> list[float]:
    """Return tokens/s of finetunes that are there and recorded it."""
    speeds: list[float] = []
    for adapter in plan.adapters:
        timing: Path = store.folder(adapter.digest) / "timing.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            speeds.append(float(json.loads(timing.read_text())["tokens_per_second"]))
    return [speed for speed in speeds if speed > 0]


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


def _heading(plan: Plan, found: Survey, subject: Subject) -> str:
    """Return the line above a base model's rows, marked if the finetune that it is made by is to run."""
    needed = {item.path for item in found.needed}
    made_by = next(item.inputs.get("finetune") for item in plan.models if item.path == subject.model_path)
    return f"[bold]{subject.model}[/]{' *' if made_by in needed else ''}"


def _label(subject: Subject, trains: bool) -> str:
    seed = "" if is_base(subject) else f" seed {subject.seed}"
    return f"  {subject.treatment}{seed}{' *' if trains else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
