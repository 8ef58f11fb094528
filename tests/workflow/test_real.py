"""The smoke experiment on the real model, from nothing to the heatmap, and again: the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest
from conftest import Checkout, copy_project

OVERRIDES = ("data.train_items=8", "data.test_items=6", "protocols=[contrast,choice]", "contexts=[id,far]")
MORE = ("data.far_items=3", "training.batch=2", "execution.checkpoint_seconds=1", "style.formats=[png]")


def adapters(store: Path) -> dict[str, bytes]:
    """Return path to weights of all adapters in a view."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.glob("adapters/*/*/*/adapter_model.safetensors")}


@pytest.fixture
def real(tmp_path: Path, smollm2: Path) -> Checkout:
    """Return a checkout with the real propgen, whose store holds the base model and nothing else."""
    root = copy_project(tmp_path)
    shutil.copytree(smollm2, root / "results/store/objects" / smollm2.name, copy_function=os.link)
    return Checkout(root, dict(os.environ))


@pytest.mark.model
def test_the_real_chain_is_reproducible_killable_and_independent_of_neighbours(real: Checkout) -> None:
    """Killed in a finetune and gone on; then an adapter and a cell dropped and made again alone: the same bytes."""
    process = subprocess.Popen(
        real.command("smoke", (*OVERRIDES, *MORE)),
        cwd=real.root,
        env=real.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(1800):
        if list((real.store / "objects/.work").glob("*/*")):
            break
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    real.snakemake("smoke", *OVERRIDES, *MORE)
    assert len(real.cells()) == 4 * 2 * 2 * 2

    weights, cells = adapters(real.store), {path: path.read_bytes() for path in real.cells()}
    trained = next(p for p in (real.store / "adapters").glob("*/honesty-demonstration/*"))
    alone = next(p for p in real.cells() if "honesty.choice.far" in p.name and "formality-demonstration" in str(p))
    others = [p for p in real.cells() if trained.name in str(p)]
    dropped = [str(path.relative_to(real.root)) for path in (trained, alone, *others)]
    real.propgen("store", "drop", *dropped)
    real.snakemake("smoke", *OVERRIDES, *MORE)
    assert adapters(real.store) == weights
    assert {path: path.read_bytes() for path in real.cells()} == cells

    table = pl.read_parquet(real.root / "results/smoke/cells.parquet")
    control = table.filter(treatment="control-shuffled").group_by("evaluation").agg(pl.col("score").mean().alias("c"))
    joined = table.join(control, on="evaluation")
    assert (joined["effect"] - (joined["score"] - joined["c"])).abs().max() < 1e-12
    assert (real.root / "results/smoke/figures/heatmap.png").stat().st_size > 10_000
