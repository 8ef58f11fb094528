"""Large experiments with pretend artifacts, by default 405 finetunes x 135 evaluations."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from conftest import Checkout

from propgen.compose import Project, compose
from propgen.plan import Plan
from propgen.planner import Planner
from propgen.store import MANIFEST
from propgen.workflow import STATISTICS, TABLES, open_view

EXPERIMENT = """# @package _global_
name: scale
models: [{models}]
traits: [{traits}]
trained: [{trained}]
evaluated: [{evaluated}]
regimes: [demonstration]
protocols: [contrast]
contexts: [id]
seeds: [0, 1, 2, 3, 4]
controls: {{regimes: [control-shuffled], seeds: [0, 1, 2, 3]}}
data: {{train_items: 4, test_items: 2}}
"""


class Size(NamedTuple):
    """An experiment of models x (trained x 5 + 4 controls + 1 base) subjects, each on all traits but those spared."""

    models: int = 3
    trained: int = 26
    traits: int = 135
    spared: int = 0


def write_experiment(root: Path, size: Size | None = None) -> None:
    """Write traits with small banks, models, and the experiment."""
    size = size or Size()
    names = [f"t{i}" for i in range(size.traits)]
    for name in names:
        (root / f"conf/trait/{name}.yaml").write_text(f"definition: {name}\npositive: more\nnegative: less\n")
        items = [
            {
                "item": f"{name}-{k}",
                "family": f"{name}-f{k}",
                "domain": "work",
                "split": "train" if k < 4 else "test",
                "prompt": f"{name} {k}",
                "positive": "yes",
                "negative": "no",
            }
            for k in range(6)
        ]
        (root / f"conf/trait/{name}.jsonl").write_text("\n".join(json.dumps(item) for item in items) + "\n")
    for k in range(size.models):
        text = f"source: wheel:pretend=={k}\nfile: a.gguf\nsha256: {'abc'[k] * 64}\n"
        (root / f"conf/model/m{k}.yaml").write_text(text)
    text = EXPERIMENT.format(
        models=", ".join(f"m{k}" for k in range(size.models)),
        traits=", ".join(names),
        trained=", ".join(names[: size.trained]),
        evaluated=", ".join(names[: size.traits - size.spared]),
    )
    (root / "conf/experiment/scale.yaml").write_text(text)


def fill(checkout: Checkout) -> Plan:
    """Make every object of the experiment, empty but present; returns the plan."""
    project = Project(checkout.root)
    plan = Planner(project, compose(project, ["experiment=scale"])).plan()
    store = open_view(project, plan.store).store
    store.objects.mkdir(parents=True, exist_ok=True)
    for item in plan.artifacts:
        store.folder(item.digest).mkdir()
        (store.folder(item.digest) / MANIFEST).write_text("{}")
    for cell in plan.cells:
        store.folder(cell.digest).mkdir()
        store.payload(cell.digest, cell=True).touch()
    for name in (*TABLES, *(f"statistics/{name}" for name in STATISTICS)):
        path = checkout.root / "results/scale" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return plan


class Figures(NamedTuple):
    """What a command took: seconds by the clock, seconds of processor time, peak resident memory; and what it said."""

    wall: float
    cpu: float
    megabytes: int
    text: str


MEASURE = """
import json, os, sys, time
report, *command = sys.argv[1:]
before = time.monotonic()
_, status, used = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
with open(report, "w") as file:
    json.dump([time.monotonic() - before, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024], file)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between the tests and the measured one: a new process counts its parent's memory as its own peak."""


def measure(checkout: Checkout, *arguments: str) -> Figures:
    """Run Snakemake on the large experiment."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--config", "experiment=scale"]
    return timed(command, checkout.root)


def timed(command: list[str], folder: Path) -> Figures:
    """Run a command in a folder, and measure this one process."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(report), *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return Figures(*json.loads(report.read_text()), done.stdout)
