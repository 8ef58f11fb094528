"""Plans made in this process, and the digests in them by names that stay when digests change."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from conftest import ROOT

from propgen.bank import Bank
from propgen.compose import Project, compose
from propgen.digest import SHORT
from propgen.plan import Plan
from propgen.planner import Planner

REAL = Project(ROOT)


def planner(project: Project, *overrides: str) -> Planner:
    """Return a planner of the smoke experiment with overrides."""
    return Planner(project, compose(project, ["experiment=smoke", *overrides]))


@cache
def planned(*overrides: str) -> Plan:
    """Return the plan of the smoke experiment, of the project's own configs, with overrides."""
    return planner(REAL, *overrides).plan()


PROBES, TRAITS = (
    [name for name in REAL.options("trait") if planner(REAL).element("trait", name).probe is probe]
    for probe in (True, False)
)
"""The project's own probes, and its traits."""


@cache
def real_bank(trait: str) -> Bank:
    """Return the bank of one of the project's own traits."""
    return planner(REAL).bank(trait)


def digests(plan: Plan) -> dict[str, str]:
    """Return label to digest of everything in a plan, as in `finetune <model>/<treatment>/seed0`."""
    found = {f"{item.stage} {item.name[: -SHORT - 1]}": item.digest for item in plan.artifacts}
    found |= {f"evaluation {evaluation.name}": evaluation.digest for evaluation in plan.evaluations}
    for cell in plan.cells:
        found[f"cell {cell.subject.name[: -SHORT - 1]} {cell.evaluation.name}"] = cell.digest
    return found | {"tables": plan.matrix_digest, "figures": plan.figures_digest}


def changed(before: Plan, after: Plan) -> set[str]:
    """Return the labels whose digest differs, among those that both plans have."""
    old, new = digests(before), digests(after)
    return {label for label in old.keys() & new.keys() if old[label] != new[label]}


def labels(plan: Plan, *starts: str) -> set[str]:
    """Return the labels that begin with one of `starts`."""
    return {label for label in digests(plan) if label.startswith(starts)}


def edit_item(bank: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the item called `name` of a bank's file."""
    items = [json.loads(line) for line in bank.read_text().splitlines()]
    edit(next(item for item in items if item["item"] == name))
    write_items(bank, items)


def write_items(bank: Path, items: list[dict[str, Any]]) -> None:
    """Write a bank's file."""
    bank.write_text("".join(json.dumps(item) + "\n" for item in items))


def make_items(name: str, domains: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Return items of a trait. domains: domain to numbers of training and of test items."""
    items: list[dict[str, Any]] = []
    for domain, counts in domains.items():
        for split, count in zip(("train", "test"), counts, strict=True):
            for k in range(count):
                label = f"{name}-{domain}-{split}-{k}"
                about = {"item": label, "family": label, "domain": domain, "split": split}
                items.append({**about, "prompt": f"{label}?", "positive": f"{label} yes", "negative": f"{label} no"})
    return items


def add_trait(project: Project, name: str) -> None:
    """Add a trait with 20 training and 20 test items of two domains."""
    text = f"definition: {name}\npositive: more\nnegative: less\n"
    (project.conf / f"trait/{name}.yaml").write_text(text)
    write_items(project.conf / f"trait/{name}.jsonl", make_items(name, {"work": (10, 10), "home": (10, 10)}))
