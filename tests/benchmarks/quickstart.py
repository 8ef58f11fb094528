"""The README's main job by the clock, beside the same job as it was before anything had been made fast."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent)]

from conftest import copy_project

BEFORE = "d0a13b3"
"""The last commit with plain transformers and peft on a processor; the benchmark needs the history back to it."""


def measure() -> tuple[float, float]:
    """Return seconds of `snakemake --cores 2` from nothing but the base model to the heatmaps: now, and before."""
    with tempfile.TemporaryDirectory() as folder:
        now, before = Path(folder) / "now", Path(folder) / "before"
        now.mkdir()
        before.mkdir()
        archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "x"], cwd=before, input=archive, check=True)
        return _seconds(copy_project(now)), _seconds(before)


def _seconds(root: Path) -> float:
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PYTHONPATH": str(root), "PATH": f"{scripts}:{os.environ['PATH']}"}
    commands = [
        [str(scripts / "propgen"), "model", "model=smollm2-135m"],
        [sys.executable, "-m", "snakemake", "--cores", "2"],
    ]
    for command in commands:
        began = time.perf_counter()
        subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began  # of the last command
