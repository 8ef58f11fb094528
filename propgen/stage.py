"""Stages: what `propgen <stage> <overrides>` does: make one artifact from a composed config, or a subject's cells."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from propgen.compose import Composition, Project
from propgen.config import Training
from propgen.device import resolve_dtype, take
from propgen.digest import identity
from propgen.errors import InputError, PropgenError
from propgen.imports import lean
from propgen.plan import BASE, Artifact, Cell, Plan, Subject, Treatment
from propgen.planner import Planner
from propgen.store import CorruptError, Store, View
from propgen.survey import Survey
from propgen.workflow import job_digest, open_view

log = logging.getLogger("propgen")

PARTIAL = "partial"
"""Folder of an experiment's tables and figures that leave out missing cells."""


@dataclass(frozen=True)
class Bench:
    """What a stage works with: the checkout, its planner and its view of the store."""

    project: Project
    planner: Planner
    view: View

    @property
    def store(self) -> Store:
        """The store behind the view."""
        return self.view.store


def open_bench(project: Project, composition: Composition) -> Bench:
    """Return a stage's bench."""
    return Bench(project, Planner(project, composition), open_view(project, composition.config.store))


def model(bench: Bench) -> None:
    """Fetch and convert the chosen base model, or assemble it from its base and its own finetune."""
    item = _chosen_model(bench)
    source = bench.planner.element("model", bench.planner.chosen["model"])

    made: Mapping[str, str] = item.spec["inputs"]

    def build(folder: Path) -> None:
        with lean():
            from propgen.model import assemble, fetch

        if made:
            finetuned = _input(bench, made["finetune"], "its finetune")
            assemble(_input(bench, made["base"], "the base model"), finetuned, folder)
        else:
            fetch(bench.planner.chosen["model"], source, folder)
        _write_config(folder, item, {"versions": _versions("torch", "transformers", "gguf")})

    _make(bench, item, build)


def dataset(bench: Bench) -> None:
    """Write the training data of the chosen treatment."""
    from propgen.dataset import write

    treatment = _chosen_treatment(bench)
    item = bench.planner.dataset(treatment)

    def build(folder: Path) -> None:
        write(folder, treatment.name, bench.planner.examples(treatment))
        _write_config(folder, item, {"versions": _versions("datasets")})

    _make(bench, item, build)


def finetune(bench: Bench) -> None:
    """Finetune the chosen base model on the chosen treatment's dataset with the chosen seed."""
    config, planner = bench.planner.config, bench.planner
    treatment = _chosen_treatment(bench)
    item = planner.adapter(_chosen_name(bench), treatment, _chosen_seed(bench))
    inputs: Mapping[str, str] = item.spec["inputs"]

    def build(folder: Path) -> None:
        base = _input(bench, inputs["model"], "the base model")
        data = _input(bench, inputs["dataset"], "the dataset")
        with take(config.execution.device, config.execution.threads) as device:
            with lean():
                from propgen.dataset import read
                from propgen.training import finetune as run

            dtype = resolve_dtype(config.training.dtype, device)
            checkpoint = bench.store.workspace(item.digest)
            seed: int = item.spec["config"]["seed"]
            run(
                base,
                list(read(data)["messages"]),
                config.training,
                seed,
                dtype,
                config.execution,
                device,
                folder,
                checkpoint,
            )
        versions = _versions("torch", "transformers", "peft", "accelerate")
        record = {"device": device, "dtype": dtype, "versions": versions}
        _write_config(folder, item, record, _training_overrides(config.training, config.data.train_items))

    _make(bench, item, build)


def evaluate(bench: Bench) -> None:
    """Score the chosen subject (a finetune, or without a regime the base model) under the chosen evaluations."""
    from propgen.evaluation import Column, Scorer
    from propgen.evaluation import evaluate as run

    config, planner = bench.planner.config, bench.planner
    subject = _chosen_subject(bench)
    trained = [] if subject.treatment == BASE else _training_overrides(config.training, config.data.train_items)
    columns = [
        Column(
            column,
            planner.items(column.trait, column.context, column.spec["kind"]),
            [*trained, *planner.evaluation_overrides(column)],
        )
        for column in planner.chosen_evaluations()
    ]
    _expect(config.digest, job_digest(subject, [column.evaluation.digest for column in columns]))
    missing = [c for c in columns if not _is_made(bench, Cell(subject, c.evaluation))]
    if not missing:
        log.info("%s: every cell is there already", subject.name)
        return
    base = _input(bench, planner.model(subject.model).digest, "the base model")
    adapter = None if subject.treatment == BASE else _input(bench, subject.digest, "the adapter")
    with take(config.execution.device, config.execution.threads) as device:
        dtype = resolve_dtype(config.engine.dtype, device)
        record: dict[str, Any] = {"device": device, "dtype": dtype, "engine": config.engine.name}
        record["versions"] = _versions("torch", "transformers")
        run(bench.view, subject, missing, Scorer(base, adapter, dtype, device, config.execution), record)


def items(bench: Bench) -> None:
    """Put the experiment's cells into one table."""
    from propgen.items import collect, write_items

    plan = _planned(bench)
    _expect(bench.planner.config.digest, plan.items_digest)
    found = collect(plan, bench.view, partial=bench.planner.config.partial)
    write_items(_folder(bench, plan) / "items.parquet", found)


def gates(bench: Bench) -> None:
    """Judge from the experiment's items which finetunes are sound."""
    from propgen.gates import Rules, gates, write
    from propgen.items import read_items

    plan = _planned(bench)
    _expect(bench.planner.config.digest, plan.gates_digest)
    folder = _folder(bench, plan)
    rules = Rules(**plan.analysis["gates"])
    write(folder / "statistics", gates(read_items(folder / "items.parquet").rows, plan.control, rules))


def matrix(bench: Bench) -> None:
    """Turn the experiment's items into cells and effects."""
    from propgen.analysis import require_effects, tabulate, write_tables
    from propgen.items import read_items
    from propgen.tables import GATES, read_table

    plan = _planned(bench)
    _expect(bench.planner.config.digest, plan.matrix_digest)
    partial, folder = bench.planner.config.partial, _folder(bench, plan)
    gated = read_table(folder / "statistics/gates.parquet", GATES)
    tables = tabulate(plan, read_items(folder / "items.parquet"), gated)
    if partial:
        require_effects(tables)
    write_tables(folder, tables)
    if not partial:
        shutil.rmtree(bench.project.results / plan.name / PARTIAL, ignore_errors=True)


def statistics(bench: Bench) -> None:
    """Compute from the experiment's items what holds of its matrix as a whole, and say it in words."""
    from propgen.items import read_items
    from propgen.statistics import tabulate, write
    from propgen.summary import summarise
    from propgen.tables import GATES, MATRIX, read_table

    plan = _planned(bench)
    _expect(bench.planner.config.digest, plan.statistics_digest)
    folder = _folder(bench, plan)
    gated = read_table(folder / "statistics/gates.parquet", GATES)
    tables = tabulate(plan, read_items(folder / "items.parquet").rows, gated)
    page = summarise(plan, read_table(folder / "matrix.parquet", MATRIX), gated, tables)
    write(folder / "statistics", tables, page)


def figures(bench: Bench) -> None:
    """Draw the experiment's figures from its tables."""
    from propgen.figures import draw

    plan = _planned(bench)
    _expect(bench.planner.config.digest, plan.figures_digest)
    draw(plan, _folder(bench, plan), bench.planner.config.style)


STAGES: dict[str, Callable[[Bench], None]] = {
    "model": model,
    "dataset": dataset,
    "finetune": finetune,
    "evaluate": evaluate,
    "items": items,
    "gates": gates,
    "matrix": matrix,
    "statistics": statistics,
    "figures": figures,
}


def _folder(bench: Bench, plan: Plan) -> Path:
    """Return where tables and figures go; incomplete ones never replace those of a run that came to its end."""
    folder = bench.project.results / plan.name
    return folder / PARTIAL if bench.planner.config.partial else folder


def _make(bench: Bench, item: Artifact, build: Callable[[Path], None]) -> None:
    _expect(bench.planner.config.digest, item.digest)
    outcome = bench.store.make(item.digest, build)
    bench.view.link(item.path, item.digest)
    log.info("%s: %s", item.path, outcome)


def _is_made(bench: Bench, cell: Cell) -> bool:
    """Return whether a cell's object exists; if so its link is set."""
    if not bench.store.payload(cell.digest, cell=True).is_file():
        return False
    bench.view.link(cell.path, cell.digest, cell=True)
    return True


def _input(bench: Bench, digest: str, what: str) -> Path:
    """Return the verified folder of an input; a damaged one goes to quarantine."""
    if not bench.store.payload(digest).is_file():
        raise PropgenError(
            f"{what} {digest[:12]} is not in the store; make it first, with `propgen model`, `dataset` or `finetune`, "
            "or run snakemake"
        )
    try:
        return bench.store.verify(digest)
    except CorruptError as error:
        place = bench.store.quarantine(digest, bench.view.root / "quarantine")
        raise PropgenError(f"{what}: {error}; moved to {place}, the next run makes it again") from error


def _expect(expected: str | None, found: str) -> None:
    if expected is not None and expected != found:
        raise InputError(
            f"digest={expected[:12]} was planned, but the configs and banks now give {found[:12]}: "
            "something differs; run snakemake again, or leave out digest="
        )


def _planned(bench: Bench) -> Plan:
    """Return the pinned plan, or without `plan=` a fresh one."""
    pin = bench.planner.config.plan
    if pin is None:
        return bench.planner.plan()
    try:
        return Survey.from_json(json.loads((bench.project.root / pin).read_text())).plan
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"plan={pin}: not a pinned plan ({error}); leave plan= out to plan afresh") from error


def _chosen_name(bench: Bench) -> str:
    if "model" not in bench.planner.chosen:
        raise InputError("no model is chosen; add one, as in model=smollm2-135m")
    return bench.planner.chosen["model"]


def _chosen_model(bench: Bench) -> Artifact:
    return bench.planner.model(_chosen_name(bench))


def _chosen_seed(bench: Bench) -> int:
    seed = bench.planner.config.seed
    if seed is None:
        raise InputError("no seed is chosen; add one, as in seed=0")
    return seed


def _chosen_treatment(bench: Bench) -> Treatment:
    chosen = bench.planner.chosen
    if "regime" not in chosen:
        raise InputError("no regime is chosen; add one, as in regime=demonstration")
    return bench.planner.treatment(chosen["regime"], chosen.get("trait"), bench.planner.config.variant)


def _chosen_subject(bench: Bench) -> Subject:
    if "regime" not in bench.planner.chosen:
        return bench.planner.subject(_chosen_name(bench), Treatment(BASE, BASE), 0)
    return bench.planner.subject(_chosen_name(bench), _chosen_treatment(bench), _chosen_seed(bench))


def _training_overrides(training: Training, items: int) -> list[str]:
    settings = [f"training.{key}={value}" for key, value in identity(training).items()]
    return [f"data.train_items={items}", *settings]


def _write_config(folder: Path, item: Artifact, execution: Mapping[str, Any], more: list[str] | None = None) -> None:
    """Keep with an artifact what made it: `propgen <stage> <overrides>` remakes it to the same digest."""
    record = {
        "stage": item.stage,
        "digest": item.digest,
        "overrides": [*item.choice, *(more or [])],
        "spec": item.spec,
        "execution": dict(execution),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False))


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
