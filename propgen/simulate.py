"""Simulation: how often the analysis is right where the truth is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from typing import Any

import numpy as np

from propgen import inference
from propgen.config import Gates
from propgen.factors import rank
from propgen.gates import FAILED, Rules, judge
from propgen.inference import Effects
from propgen.multiplicity import adjusted
from propgen.power import DEFAULTS, Design, smallest
from propgen.scores import Array, Mask
from propgen.sheet import Sheet
from propgen.simulator import World, draw

SEEDS: Sequence[tuple[int, int]] = ((1, 4), (2, 4), (3, 4), (3, 8), (5, 8))
ITEMS = (64, 200)
WORLDS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "heavy-tailed items": {"heavy": True},
    "doubled seed variances": {"doubled": True},
    "missing cells and ties": {"missing": 0.05, "ties": True},
}
LEVEL, ALPHA = 0.95, 0.05
RULES = Rules(**{**vars(Gates()), "worth": 12.0})
"""The gates' defaults, in points."""
COLLAPSED = 0.9
SECONDS = 300.0
"""How long a run takes that is not told how many repetitions to make."""
PLANTED = 1
"""Rank of the worlds in which a structure is looked for."""


@dataclass
class Tally:
    """What was seen in a design's repetitions."""

    covered: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    false: list[bool] = field(default_factory=list[bool])
    found: list[float] = field(default_factory=list[float])
    collapsed: list[bool] = field(default_factory=list[bool])
    healthy: list[float] = field(default_factory=list[float])
    ranked: list[bool] = field(default_factory=list[bool])

    def as_json(self, design: Design, predicted: float) -> dict[str, Any]:
        """Return rates; power_error is in percentage points."""
        by_world = {name: _share(values) for name, values in self.covered.items()}
        return {
            "treated": design.treated,
            "controls": design.controls,
            "items": design.items,
            "repetitions": len(self.false),
            "coverage": _share([value for values in self.covered.values() for value in values]),
            "coverage_by_world": by_world,
            "false_discovery": _share(self.false),
            "power_error": None if not self.found else round(100 * (float(np.mean(self.found)) - predicted), 2),
            "gate_hits": _share(self.collapsed),
            "gate_false": _share(self.healthy),
            "rank_hits": _share(self.ranked),
        }


def _share(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def simulate(repetitions: int | None, seconds: float, seed: int = 0) -> list[dict[str, Any]]:
    """Return the rates of every design. repetitions: of each, or None for what fits in `seconds`."""
    designs = [Design(*seeds, items) for seeds, items in product(SEEDS, ITEMS)]
    tallies = {design: Tally() for design in designs}
    dice = np.random.default_rng(seed)
    end = time.monotonic() + seconds
    for number in _numbers(repetitions, end):
        for design, tally in tallies.items():
            repeat(design, list(WORLDS)[number % len(WORLDS)], tally, dice)
    return [tally.as_json(design, inference.POWER) for design, tally in tallies.items()]


def _numbers(repetitions: int | None, end: float) -> Iterator[int]:
    for number in count():
        if number == repetitions or (repetitions is None and number >= len(WORLDS) and time.monotonic() > end):
            return
        yield number


def repeat(design: Design, name: str, tally: Tally, dice: np.random.Generator) -> None:
    """Add one repetition in a world: intervals, tests and gates where nothing transfers, and a planted structure."""
    world = World(design.treated, design.controls, design.items, **WORLDS[name])
    sheet, truth = draw(world, dice)
    found = inference.effects(sheet.scores, LEVEL)
    cells = ~np.eye(world.traits, dtype=bool)
    tally.covered.setdefault(name, []).append(_covered(found, truth, cells))
    p = np.where(cells, found.p[2:], np.nan)
    tally.false.append(bool((adjusted(p, "bh") <= ALPHA).any()))
    if name == "plain":
        tally.found.append(_power(found, design, cells))
    _judge(sheet, tally, draw(replace(world, collapsed=COLLAPSED), dice)[0])
    planted, _ = draw(replace(world, rank=PLANTED), dice)
    tally.ranked.append(_rank(planted, dice) == PLANTED)


def _covered(found: Effects, truth: Array, cells: Mask) -> float:
    inside = (found.low[2:] <= truth) & (truth <= found.high[2:])
    return float(inside[cells & np.isfinite(found.low[2:])].mean())


def _power(found: Effects, design: Design, cells: Mask) -> float:
    """Return how often an effect of the size that `power` calls detectable is found: it only shifts the estimates."""
    size = smallest(DEFAULTS, design)
    if size is None:
        return inference.POWER  # no test was promised, and none is made
    t = (found.effect + size)[2:] / found.se[2:]
    return float((np.abs(t) > inference.critical(found.test_df[2:], ALPHA))[cells].mean())


def _judge(healthy: Sheet, tally: Tally, collapsed: Sheet) -> None:
    """Count rows that fail a gate: the collapsed one should, and no healthy one."""
    rows = judge({healthy.key: healthy}, RULES, ("choice",))
    failed = {row["treatment"] for row in rows if row["verdict"] == FAILED}
    tally.healthy.append(len(failed) / len(healthy.trained))
    rows = judge({collapsed.key: collapsed}, RULES, ("choice",))
    failed = {row["treatment"] for row in rows if row["verdict"] == FAILED}
    tally.collapsed.append(collapsed.rows[2]["treatment"] in failed)


def _rank(sheet: Sheet, dice: np.random.Generator) -> int:
    found = inference.effects(sheet.scores, LEVEL)
    own = np.eye(len(sheet.traits), dtype=bool)
    best = rank(found.effect[sheet.trained], own, found.terms.variance[sheet.trained], dice)
    return -1 if best is None else best.k
