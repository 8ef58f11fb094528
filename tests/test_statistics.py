"""Statistics and their page: every table in its schema, degenerate experiments, and no number without its table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from synthetic import fill, make_plan, make_view, results

from propgen.plan import Cell, Plan
from propgen.simulate import ITEMS, SEEDS, simulate
from propgen.statistics import tabulate, write
from propgen.summary import summarise
from propgen.workflow import STATISTICS

pytestmark = pytest.mark.filterwarnings("error")
TRAITS = ("honesty", "formality", "malice", "empathy", "frugality")


def noise(cell: Cell, item: int, sample: int) -> float:
    """Return an item's score, with an own effect and some noise of the seed."""
    dice = np.random.default_rng([int(cell.digest[:8], 16), item, sample])
    own = 0.3 * cell.subject.treatment.startswith(cell.evaluation.trait)
    return 0.3 + own + 0.1 * dice.uniform() + 0.02 * (item % 5)


def page(plan: Plan, tmp_path: Path, score: Any = noise) -> tuple[str, dict[str, pl.DataFrame]]:
    """Return the page and the statistics of a plan."""
    view = make_view(tmp_path)
    fill(plan, view, score)
    tables = results(plan, view)
    found = dict(tabulate(plan, tables.items, tables.gates))
    text = summarise(plan, tables.matrix, tables.gates, found)
    write(tmp_path / "statistics", found, text)
    return text, found


def test_everything_that_snakemake_expects_is_written(tmp_path: Path) -> None:
    plan = make_plan(
        TRAITS, seeds=(0, 1, 2), control_seeds=(0, 1, 2), items=20, views=[("choice", "id"), ("choice", "far")]
    )
    text, found = page(plan, tmp_path)
    assert sorted(path.name for path in (tmp_path / "statistics").iterdir()) == sorted(STATISTICS)
    assert found["structure"].height == 2
    assert found["generality"]["across"].to_list() == ["context"]
    assert "What this cannot say" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        name = link.removeprefix("../")
        assert name in (*STATISTICS, "matrix.parquet", "matrix-all.parquet", "gates.parquet"), link


DEGENERATE: dict[str, tuple[dict[str, Any], Any]] = {
    "one trait": ({"trained": ("honesty",)}, noise),
    "one seed": ({"seeds": (0,), "control_seeds": (0,)}, noise),
    "one seed against controls": ({"seeds": (0,), "control_seeds": (0, 1, 2)}, noise),
    "one item": ({"items": 1}, noise),
    "constant scores": ({}, lambda *_: 0.5),
    "nothing scored": ({}, lambda *_: None),
    "a row without scores": ({}, lambda cell, *r: None if "malice" in cell.subject.treatment else noise(cell, *r)),
    "no control scored": ({}, lambda cell, *r: None if "control" in cell.subject.treatment else noise(cell, *r)),
    "no base scored": ({}, lambda cell, *r: None if cell.subject.treatment == "base" else noise(cell, *r)),
    "a column without scores": ({}, lambda cell, *r: None if cell.evaluation.trait == "malice" else noise(cell, *r)),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_experiments_have_a_page_without_silent_numbers(case: str, tmp_path: Path) -> None:
    """Nothing crashes or warns, and what cannot be said is null in tables and left out of the page."""
    changes, score = DEGENERATE[case]
    options: dict[str, Any] = {"trained": TRAITS, "seeds": (0, 1), "items": 12, "views": [("choice", "id")]}
    text, found = page(make_plan(**{**options, **changes}), tmp_path, score)
    assert "nan" not in text.lower().replace("finance", "")
    assert "inf" not in text.replace("information", "")
    for name, frame in found.items():
        floats = frame.select(pl.selectors.float())
        assert not any(floats.select(pl.all().is_nan().any()).row(0)) if floats.width and frame.height else True, name
    if case.startswith("one seed"):
        assert "differ from 0 after correction" not in text
        assert "no cell is tested" in text


def test_the_simulation_gives_rates_for_every_design() -> None:
    """The reduced form of `propgen simulate`; the full one stands in the documentation."""
    found = simulate(12, 1e9)
    assert [(row["treated"], row["controls"], row["items"]) for row in found] == [
        (*seeds, items) for seeds in SEEDS for items in ITEMS
    ]
    for row in found:
        assert row["false_discovery"] <= 0.2
        assert row["gate_hits"] == 1
        assert row["gate_false"] <= 0.02
        if row["treated"] > 1:
            assert row["rank_hits"] >= 0.75
        if row["treated"] >= 3:
            assert 0.92 <= row["coverage"] <= 0.985
            assert abs(row["power_error"]) < 12


def test_simulations_repeat() -> None:
    assert simulate(1, 1e9) == simulate(1, 1e9)
