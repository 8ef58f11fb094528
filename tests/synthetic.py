"""Plans and cells made up by hand, for tests that need neither configs nor a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import yaml
from scipy.stats import norm

from propgen.analysis import Tables, tabulate
from propgen.config import Analysis, Gates, Generation
from propgen.digest import Spec, identity
from propgen.gates import Rules, gates
from propgen.items import Items, collect
from propgen.plan import BASE, Artifact, Cell, Evaluation, Plan, Subject, Treatment
from propgen.power import POWERS
from propgen.store import CELL, Store, View
from propgen.tables import COMOVEMENT, LEDGER, LOADINGS, MATRIX, write_cell

Score = Callable[[Cell, int, int], float | None]
"""Cell, item and sample to a score."""
RECORD = {"engine": "transformers", "dtype": "float32", "device": "cpu"}


def make_plan(
    trained: Sequence[str] = ("honesty", "formality"),
    evaluated: Sequence[str] | None = None,
    *,
    models: Sequence[str] = ("m",),
    seeds: Sequence[int] = (0, 1),
    controls: Sequence[str] = ("control-shuffled",),
    control_seeds: Sequence[int] = (0, 1),
    views: Sequence[tuple[str, str]] = (("contrast", "id"),),
    items: int = 4,
) -> Plan:
    """Return a plan of one regime; views are protocol and context, and a protocol is named like its kind."""
    treatments = [Treatment(BASE, BASE), *(Treatment(name, name, control=True) for name in controls)]
    treatments += [Treatment(f"{trait}-demonstration", "demonstration", trait) for trait in trained]
    bases = {name: _artifact("model", name, {"source": name}) for name in models}
    datasets = {t.name: _artifact("dataset", t.name, {"of": t.name}) for t in treatments[1:]}
    rows = [(t, s) for t in treatments[1:] for s in (control_seeds if t.control else seeds)]
    adapters: list[Artifact] = []
    subjects: list[Subject] = []
    for model, base in bases.items():
        name = f"{model}/{BASE}/seed0-{base.digest[:12]}"
        subjects.append(Subject(name, model, BASE, 0, base.digest, base.path, (f"model={model}",)))
        for treatment, seed in rows:
            data = datasets[treatment.name]
            adapter = _artifact("finetune", f"{model}/{treatment.name}/seed{seed}", {"seed": seed}, base, data)
            adapters.append(adapter)
            subjects.append(
                Subject(adapter.name, model, treatment.name, seed, adapter.digest, base.path, (f"seed={seed}",))
            )
    columns = [(trait, *view) for view in views for trait in evaluated or trained]
    return Plan(
        name="synthetic",
        experiment="synthetic",
        store="objects",
        treatments=tuple(treatments),
        models=tuple(bases.values()),
        datasets=tuple(datasets.values()),
        adapters=tuple(adapters),
        subjects=tuple(subjects),
        evaluations=tuple(_evaluation(*column, items) for column in columns),
        analysis=identity(Analysis()),
        style={"formats": ["png", "svg", "pdf"]},
        control=controls[0],
    )


def make_view(root: Path) -> View:
    """Return a checkout's view of a store inside it."""
    return View(root / "results/store", Store(root / "results/store/objects"))


def publish(view: View, item: Artifact) -> None:
    """Make an artifact's object with the config that the stages keep with it."""
    text = yaml.safe_dump({"spec": item.spec})
    with mock.patch("propgen.store.fsync"):  # slow, and nobody pulls the plug on a test
        view.store.make(item.digest, lambda folder: (folder / "config.yaml").write_text(text) and None)


def fill(plan: Plan, view: View, score: Score, leave_out: Collection[str] = (), dtype: str = "float32") -> None:
    """Make every cell of the plan but those whose digests are left out."""
    for cell in plan.cells:
        if cell.digest not in leave_out:
            make_cell(view, cell, score, dtype)


@dataclass(frozen=True)
class Results:
    """What the stages behind the cells make of an experiment."""

    items: pl.DataFrame
    gates: pl.DataFrame
    cells: pl.DataFrame
    matrix: pl.DataFrame
    everything: pl.DataFrame
    about: dict[str, Any]


def results(plan: Plan, view: View, *, partial: bool = False) -> Results:
    """Return an experiment's tables, one stage after the other."""
    items: Items = collect(plan, view, partial=partial)
    judged = gates(items.rows, plan.control, Rules(**vars(Gates())))
    tables: Tables = tabulate(plan, items, judged)
    return Results(items.rows, judged, tables.cells, tables.matrix, tables.everything, tables.about)


def make_cell(view: View, cell: Cell, score: Score, dtype: str = "float32") -> None:
    """Make and link one cell, of two items a family."""
    kind = cell.evaluation.spec["kind"]

    def build(folder: Path) -> None:
        rows = [
            item_row(kind, item, sample, score(cell, item, sample))
            for item in range(cell.evaluation.items)
            for sample in range(1 if kind == "contrast" else 2)
        ]
        about = {"digest": cell.digest, "execution": {**RECORD, "dtype": dtype}}
        write_cell(folder / CELL, kind, [row | {"context": cell.evaluation.context} for row in rows], about)

    with mock.patch("propgen.store.fsync"):
        view.store.make(cell.digest, build, cell=True)
    view.link(cell.path, cell.digest, cell=True)


def item_row(kind: str, item: int, sample: int, score: float | None) -> dict[str, object]:
    """Return one row of a cell."""
    row: dict[str, object] = {"item": f"item{item}", "family": f"family{item // 2}", "domain": "work", "context": "id"}
    row |= {"sample": sample, "score": score}
    if kind == "choice":
        return row | {"order": ("positive-first", "negative-first")[sample], "p_positive": score}
    if kind == "rule":
        return row | {"response": f"I say {score}, twice: {score}", "finish_reason": "stop"}
    return row | {"logprob_positive": score, "logprob_negative": 0.0, "tokens_positive": 1, "tokens_negative": 1}


def _artifact(stage: str, name: str, config: dict[str, object], *inputs: Artifact) -> Artifact:
    spec = Spec(stage, {"name": name, **config}, {item.stage: item.digest for item in inputs})
    paths = {item.stage: item.path for item in inputs}
    return Artifact(stage, f"{name}-{spec.digest[:12]}", spec.digest, spec.as_json(), paths)


def _evaluation(trait: str, protocol: str, context: str, items: int) -> Evaluation:
    asked = Spec("generation", asdict(Generation(max_tokens=8)), {"prompts": f"{trait} {context} {items}"}).as_json()
    config = {"generation": asked} if protocol == "rule" else {}
    spec = Spec(protocol, config, {"items": f"{trait} {context} {items}"})
    name = f"{trait}.{protocol}.{context}"
    unit = {"choice": "probability", "contrast": "nats per token", "rule": "share of responses"}[protocol]
    label = "log-likelihood of the positive minus the negative answer"
    return Evaluation(name, trait, protocol, context, spec.digest, spec.as_json(), items, unit, label)


def make_matrix(plan: Plan, seed: int = 0, missing: float = 0.0, alone: bool = False) -> pl.DataFrame:
    """Return a matrix table of invented effects: a strong diagonal, intervals, and q below .05 for the larger ones.

    missing: share of rows that are left out. alone: one seed, so no interval and no test.
    """
    dice = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for model, treatment, evaluation in product(plan.models, plan.treatments, plan.evaluations):
        own = treatment.trained == evaluation.trait
        effect, se = dice.normal(0.9 if own else 0.1, 0.3), dice.uniform(0.05, 0.3)
        p = None if alone else float(2 * norm.sf(abs(effect) / se))
        if treatment.name == BASE or dice.uniform() < missing:
            continue
        row: dict[str, object] = {
            "model": model.name.rsplit("-", 1)[0],
            "trained": treatment.trained,
            "regime": treatment.regime,
            "treatment": treatment.name,
            "evaluated": evaluation.trait,
            "protocol": evaluation.protocol,
            "context": evaluation.context,
            "evaluation": evaluation.name,
            "reference": BASE if treatment.control else plan.control,
            "effect": effect,
            "p": p,
            "q": None if own or treatment.control or p is None else min(1.0, 2 * p),
            "n_seeds": 1 if alone else 3,
            "n_controls": 0 if treatment.control else 4,
            "n_items": evaluation.items,
        }
        interval = {"se": se, "ci_low": effect - 2 * se, "ci_high": effect + 2 * se, "mde": 3 * se}
        rows.append(row | ({} if alone else interval))
    return pl.DataFrame(rows, schema=MATRIX)


def write_matrix(folder: Path, plan: Plan, matrix: pl.DataFrame, missing: Sequence[str] = ()) -> None:
    """Write a matrix table with the metadata that figures read."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"missing": list(missing), "execution": ["transformers float32 cpu"], "digest": plan.matrix_digest}
    matrix.write_parquet(folder / "matrix.parquet", metadata={"propgen": json.dumps(about)})
    (folder / "statistics").mkdir(exist_ok=True)
    empty = {"power": POWERS, "ledger": LEDGER, "comovement": COMOVEMENT, "loadings": LOADINGS}
    for name, schema in empty.items():
        pl.DataFrame(schema=schema).write_parquet(folder / f"statistics/{name}.parquet")
