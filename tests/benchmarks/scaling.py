"""Seconds and memory of planning: the real plan and store, beside a Snakefile that has one job per cell."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "workflow")]

import scale
from conftest import Checkout, copy_project

GOALS = {"nothing to do": 7.0, "one missing": 7.0, "fresh": 35.0, "nothing to do, MB": 400.0}
"""At 54,675 cells."""

SIZES = {1_000: scale.Size(1, 7, 25), 10_125: scale.Size(1, 26, 75), 54_675: scale.Size()}
NAIVE = """
CELLS = [line.strip() for line in open("cells.txt")]
rule all:
    input: CELLS
rule cell:
    output: "cells/{name}.parquet"
    shell: "touch {output}"
"""


def measure(reduced: bool) -> Iterator[tuple[int, list[tuple[str, float, float | None]]]]:
    """Yield the number of cells and (what, ours, a job per cell) in seconds or megabytes."""
    for cells, size in list(SIZES.items())[: 1 if reduced else None]:
        with tempfile.TemporaryDirectory() as folder:
            yield cells, [*_ours(Path(folder), cells, size)]


def _ours(folder: Path, cells: int, size: scale.Size) -> Iterator[tuple[str, float, float | None]]:
    (folder / "checkout").mkdir()
    checkout = Checkout(copy_project(folder / "checkout"), dict(os.environ))
    naive_fresh, naive_nothing = _naive(folder / "naive", cells)
    scale.write_experiment(checkout.root, size)
    fresh = scale.measure(checkout, "-n", "-q", "all")
    plan = scale.fill(checkout)
    scale.measure(checkout, "-n", "-q", "all")  # links everything
    nothing = scale.measure(checkout, "-n", "cells")
    gone = list(plan.cells)[cells // 2]
    payload = (checkout.store / gone.path).resolve()
    payload.unlink()
    one = scale.measure(checkout, "-n", "cells")
    payload.touch()
    scale.write_experiment(checkout.root, size._replace(traits=size.traits + 1))
    trait = scale.measure(checkout, "-n", "-q", "all")
    yield "fresh", fresh.wall, naive_fresh.wall
    yield "nothing to do", nothing.wall, naive_nothing.wall
    yield "nothing to do, MB", nothing.megabytes, naive_nothing.megabytes
    yield "one missing", one.wall, None
    yield "one new trait", trait.wall, None


def _naive(folder: Path, cells: int) -> tuple[scale.Figures, scale.Figures]:
    """Return what a dry run of the plain Snakefile takes, fresh and with everything there."""
    (folder / "cells").mkdir(parents=True)
    (folder / "Snakefile").write_text(NAIVE)
    names = [f"cells/{k}.parquet" for k in range(cells)]
    (folder / "cells.txt").write_text("\n".join(names) + "\n")
    fresh = scale.timed([sys.executable, "-m", "snakemake", "--cores", "2", "-n", "-q", "all"], folder)
    for name in names:
        (folder / name).touch()
    nothing = scale.timed([sys.executable, "-m", "snakemake", "--cores", "2", "-n", "-q", "all"], folder)
    return fresh, nothing
