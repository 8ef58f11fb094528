"""A whole matrix by the clock: `snakemake --cores 2`, beside the straightforward script with two processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from conftest import copy_project
from worker import THREADS

from propgen.compose import Project, compose
from propgen.plan import BASE
from propgen.planner import Planner

TRAITS = ("honesty", "sycophancy", "risk-seeking", "formality", "empathy", "diligence", "frugality", "overconfidence")


class Figures(NamedTuple):
    """What one matrix took. cell: seconds of evaluation per cell and core, by ours. peer: None where it was not run."""

    traits: int
    seeds: int
    finetunes: int
    cells: int
    ours: float
    peer: float | None


def measure(base: Path, peers: Path, sizes: list[tuple[int, int, bool]]) -> Iterator[Figures]:
    """Yield what matrices of traits x traits x seeds take. sizes: traits, seeds, whether the script runs, too."""
    for traits, seeds, both in sizes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkout").mkdir()
            project = Project(copy_project(Path(folder) / "checkout"))
            asked = [
                f"traits=[{','.join(TRAITS[:traits])}]",
                f"seeds=[{','.join(map(str, range(seeds)))}]",
                f"controls.seeds=[{','.join(map(str, range(seeds)))}]",
            ]
            plan = Planner(project, compose(project, asked)).plan()
            ours = _ours(project.root, asked)
            peer = _script(project, asked, base, peers, Path(folder) / "script") if both else None
            yield Figures(traits, seeds, len(plan.adapters), len(list(plan.cells)), ours, peer)


def _ours(root: Path, asked: list[str]) -> float:
    """Return seconds from the command to the last cell; the model is there, converted, as it is for the script."""
    run = {"cwd": root, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([str(Path(sys.executable).parent / "propgen"), "model", "model=smollm2-135m"], **run)  # type: ignore[call-overload]
    overrides = ",".join(f'"{override}"' for override in asked)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "cells", "--config", f"overrides=[{overrides}]"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    began = time.perf_counter()
    subprocess.run(command, env={**os.environ, "PATH": path}, **run)  # type: ignore[call-overload]
    return time.perf_counter() - began


def _script(project: Project, asked: list[str], base: Path, peers: Path, folder: Path) -> float:
    """Return seconds of the script: every finetune in a process, then every finetune and trait in one."""
    planner = Planner(project, compose(project, asked))
    plan, training = planner.plan(), planner.config.training
    folder.mkdir()
    for trait in planner.config.evaluated:
        rows = [
            {"prompt": [{"role": "user", "content": i["prompt"]}], "positive": i["positive"], "negative": i["negative"]}  # type: ignore[typeddict-item]
            for i in planner.items(trait, "id")
        ]
        (folder / f"{trait}.json").write_text(json.dumps(rows))
    train: list[list[str]] = []
    score: list[list[str]] = []
    for subject in plan.subjects:
        name = f"{subject.treatment}-{subject.seed}"
        adapter = "-" if subject.treatment == BASE else str(folder / name)
        if adapter != "-":
            treatment = next(t for t in plan.treatments if t.name == subject.treatment)
            chats = [example["messages"] for example in planner.examples(treatment)]
            (folder / f"{name}.json").write_text(json.dumps(chats))
            settings = [str(subject.seed), str(training.epochs), str(training.learning_rate), adapter]
            train.append(["train", str(base), str(folder / f"{name}.json"), *settings])
        for trait in planner.config.evaluated:
            out = str(folder / f"{name}-{trait}.scores")
            score.append(["score", str(base), adapter, str(folder / f"{trait}.json"), out])
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        for commands in (train, score):
            list(pool.map(lambda command: _run(peers, command), commands))
    return time.perf_counter() - began


def _run(peers: Path, command: list[str]) -> None:
    done = subprocess.run(
        [str(peers), str(HERE / "peers/script.py"), *command],
        env=os.environ | THREADS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
