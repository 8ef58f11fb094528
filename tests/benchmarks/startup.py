"""Seconds from typing a command to its answer, or to the first useful work of a stage."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import sys
from pathlib import Path
from propgen.compose import compose, find_project
from propgen.stage import open_bench
open_bench(find_project(), compose(find_project(), ["model=smollm2-135m"]))
from propgen.model import load_frozen
from propgen.scoring import SCORERS
load_frozen(Path(sys.argv[1]), None, "bfloat16", "cpu")
"""
"""What `propgen evaluate` does before its first item: compose, import torch and transformers, load the model."""


def measure(base: Path, times: int) -> list[tuple[str, list[float], float]]:
    """Return (command, seconds, goal)."""
    propgen = str(Path(sys.executable).parent / "propgen")
    commands = {
        "propgen --help": ([propgen, "--help"], 0.3),
        "propgen plan": ([propgen, "plan", "experiment=quickstart"], 2.0),
        "a stage, to its first item": ([sys.executable, "-c", WORK, str(base)], 6.0),
    }
    found: list[tuple[str, list[float], float]] = []
    for name, (command, goal) in commands.items():
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # reads the files once
        seconds: list[float] = []
        for _ in range(times):
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
        found.append((name, seconds, goal))
    return found
