"""Fixtures: a checkout of one's own with a pretend `propgen`, and the real base model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import pretend

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "data.train_items=4",
    "data.test_items=3",
    "data.far_items=2",
    "style.formats=[svg]",
)
"""Overrides that keep pretended runs short."""


@dataclass
class Checkout:
    """A copy of the project's files in which commands run. env: of its commands."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.root / "results/store"

    @property
    def calls(self) -> list[str]:
        """Return the pieces of real work that the pretend propgen did, and forget them."""
        path = Path(self.env["PRETEND_CALLS"])
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def command(self, experiment: str, overrides: Sequence[str], *more: str, cores: int = 2) -> list[str]:
        listed = ",".join(f'"{override}"' for override in (*TINY, *overrides))
        config = [f"experiment={experiment}", f"overrides=[{listed}]"]
        return [sys.executable, "-m", "snakemake", "--cores", str(cores), *more, "--config", *config]

    def snakemake(self, experiment: str, *overrides: str, more: Sequence[str] = (), code: int = 0, **env: str) -> str:
        """Run Snakemake, expect an exit code, and return all that it printed."""
        done = subprocess.run(
            self.command(experiment, overrides, *more),
            cwd=self.root,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == code, text[-6000:]
        return text

    def propgen(self, *arguments: str, code: int = 0, **env: str) -> str:
        """Run propgen, expect an exit code, and return all that it printed."""
        done = subprocess.run(
            ["propgen", *arguments],
            cwd=self.root,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == code, text[-6000:]
        return text

    def cells(self) -> list[Path]:
        """Return the links of all cells in the view."""
        return sorted((self.store / "cells").glob("*/*/*/*.parquet"))


def copy_project(target: Path) -> Path:
    """Copy what a checkout holds, without results."""
    for name in ("conf", "workflow"):
        shutil.copytree(ROOT / name, target / name)
    shutil.copy(ROOT / "Snakefile", target / "Snakefile")
    (target / "results").mkdir()
    return target


@pytest.fixture
def new_checkout(tmp_path: Path) -> Callable[[str], Checkout]:
    """Return a maker of checkouts whose `propgen` pretends."""
    pretend.install(tmp_path / "bin")

    def make(name: str) -> Checkout:
        (tmp_path / name).mkdir()
        env = dict(os.environ)
        env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
        env["PRETEND_CALLS"] = str(tmp_path / f"{name}.calls")
        return Checkout(copy_project(tmp_path / name), env)

    return make


@pytest.fixture
def checkout(new_checkout: Callable[[str], Checkout]) -> Checkout:
    """Return a checkout whose `propgen` pretends."""
    return new_checkout("checkout")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Return a checkout in which the smoke experiment was run once; tests take copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    pretend.install(folder / "bin")
    (folder / "checkout").mkdir()
    env = dict(os.environ)
    env["PATH"] = f"{folder / 'bin'}:{env['PATH']}"
    env["PRETEND_CALLS"] = str(folder / "calls")
    checkout = Checkout(copy_project(folder / "checkout"), env)
    checkout.snakemake("smoke")
    return checkout


@pytest.fixture
def finished(finished_run: Checkout, tmp_path: Path) -> Checkout:
    """Return a copy, times included, of a checkout in which the smoke experiment is done."""
    shutil.copytree(finished_run.root, tmp_path / "checkout", symlinks=True)
    return Checkout(tmp_path / "checkout", {**finished_run.env, "PRETEND_CALLS": str(tmp_path / "calls")})


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the real base model, from this checkout's store or made now, as a user's run would."""
    from propgen.compose import compose, find_project
    from propgen.planner import Planner
    from propgen.workflow import STORE

    project = find_project(ROOT)
    item = Planner(project, compose(project, ["experiment=smoke"])).model("smollm2-135m")
    link = ROOT / STORE / item.path
    if not (link / "model.safetensors").is_file():
        subprocess.run(["propgen", "model", "model=smollm2-135m"], cwd=ROOT, check=True)
    return link.resolve()
