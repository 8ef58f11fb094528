"""The simulator: score tables with a known truth, made in an instant and without a model.

    y[i, j, s, k] = item_jk + effect_ij + seed_ijs + interaction_ijk + residual_ijsk

in points of 0 to 100, for treatments i (the base model and the control among them), columns j, seeds s and items k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from propgen.plan import BASE
from propgen.scores import Array, Index, Scores
from propgen.sheet import Sheet

CONTROL = "control"
CHANCE = 50.0
STEP = 5.0
"""Points between the values that scores have in a world with ties."""


@dataclass(frozen=True)
class World:
    """What is true. Standard deviations are in points.

    treated, controls: seeds. items: of each column, each a family of its own. traits: rows, and columns. own: effect of
    a row on its own trait; others are 0 unless `rank` > 0, when they are a product of so many random factors with
    standard deviation `spread`. seed: of a finetune's mean; `doubled` doubles that of treated seeds and of every second
    column. heavy: interactions and residuals from a t distribution with 3 degrees of freedom. missing: share of cells
    that are not there. ties: scores are multiples of 5. collapsed: how far the first row answers by chance.
    """

    treated: int = 3
    controls: int = 8
    items: int = 64
    traits: int = 12
    own: float = 12.0
    rank: int = 0
    spread: float = 8.0
    item: float = 20.0
    seed: float = 3.0
    interaction: float = 10.0
    residual: float = 12.0
    doubled: bool = False
    heavy: bool = False
    missing: float = 0.0
    ties: bool = False
    collapsed: float = 0.0


def draw(world: World, dice: np.random.Generator) -> tuple[Sheet, Array]:
    """Return a sheet of a world, and its true effects (treated rows x columns)."""
    n = world.traits
    truth = _truth(world, dice)
    arm = np.concatenate([[0], np.ones(world.controls), 2 + np.repeat(np.arange(n), world.treated)]).astype(np.intp)
    values = [_column(world, truth[:, j], arm, j, dice) for j in range(n)]
    names = tuple(f"trait{i}" for i in range(n))
    scores = Scores(
        (BASE, CONTROL, *names),
        tuple(f"{name}.choice.id" for name in names),
        arm,
        tuple(values),
        tuple(np.arange(world.items) for _ in names),
        np.array([-1, 0, *[1] * n], dtype=np.intp),
        np.array([True, *[False] * (n + 1)]),
    )
    rows = (_row(BASE, BASE, None), _row(CONTROL, CONTROL, None), *(_row(t, "demonstration", t) for t in names))
    own = np.array([-1, -1, *range(n)], dtype=np.intp)
    asked = world.items * np.isfinite(scores.means).astype(np.intp)
    return Sheet("simulated", "choice", "id", rows, _seeds(world), names, own, asked, scores), truth


def _row(treatment: str, regime: str, trained: str | None) -> dict[str, Any]:
    about: dict[str, Any] = {"model": "simulated", "treatment": treatment, "regime": regime, "trained": trained}
    return about | {"variant": None, "dose": None}


def _seeds(world: World) -> Index:
    treated = np.tile(np.arange(world.treated), world.traits)
    return np.concatenate([[-1], np.arange(world.controls), treated]).astype(np.intp)


def _truth(world: World, dice: np.random.Generator) -> Array:
    found = np.zeros((world.traits, world.traits))
    if world.rank:
        rows, columns = dice.normal(size=(2, world.traits, world.rank))
        found = rows @ columns.T
        found *= world.spread / found.std()
    np.fill_diagonal(found, world.own)
    return found


def _column(world: World, effects: Array, arm: Index, column: int, dice: np.random.Generator) -> Array:
    """Return one column's scores, subjects x items."""
    subjects, items = len(arm), world.items
    moved = np.concatenate([np.zeros((2, items)), _noise(world, world.interaction, (world.traits, items), dice)])
    scale = np.full(subjects, world.seed)
    if world.doubled:
        scale *= np.where(arm > 1, 2.0, 1.0) * (1.0 + column % 2)
    scale[0] = 0.0  # the base model has no seeds
    values = dice.normal(CHANCE, world.item, items) + moved[arm] + np.concatenate([[0, 0], effects])[arm][:, None]
    values = values + (scale * dice.normal(size=subjects))[:, None] + _noise(world, world.residual, values.shape, dice)
    if world.collapsed:
        values[arm == 2] = CHANCE + (1 - world.collapsed) * (values[arm == 2] - CHANCE)
    if world.ties:
        values = STEP * np.round(values / STEP)
    if world.missing:
        values[dice.uniform(size=subjects) < np.where(arm > 0, world.missing, 0)] = np.nan
    return values


def _noise(world: World, sd: float, shape: tuple[int, ...], dice: np.random.Generator) -> Array:
    return sd * (dice.standard_t(3, shape) / np.sqrt(3) if world.heavy else dice.normal(size=shape))
