"""Sheets: an experiment's item scores as arrays, one sheet for each base model, protocol and context."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from propgen.plan import BASE
from propgen.scores import Array, Index, Scores
from propgen.tables import IDENTITY

VIEW = ("model", "protocol", "context")
_PLACE = "place"


@dataclass(frozen=True)
class Sheet:
    """What a base model's finetunes scored under one protocol in one context.

    rows: each treatment's identity (the columns of `tables.IDENTITY`). seeds: of each subject, -1 for the base model.
    traits: of each column. own: column of each treatment's own trait, -1 for none. asked: how many items each subject
    was asked, subjects x columns; 0 where a cell is missing.
    """

    model: str
    protocol: str
    context: str
    rows: tuple[dict[str, Any], ...]
    seeds: Index
    traits: tuple[str, ...]
    own: Index
    asked: Index
    scores: Scores

    @property
    def key(self) -> tuple[str, str, str]:
        """Base model, protocol and context."""
        return self.model, self.protocol, self.context

    @property
    def trained(self) -> Index:
        """Places of the treatments that train one trait."""
        return np.array([i for i, row in enumerate(self.rows) if row["trained"] is not None], dtype=np.intp)

    def transform(self, change: Callable[[Array], Array]) -> Sheet:
        """Return the sheet with every score changed."""
        values = tuple(change(values) for values in self.scores.values)
        return replace(self, scores=replace(self.scores, values=values))

    def families(self, half: int) -> Sheet:
        """Return the sheet with one half of each column's families: every second one by name, from 0 or from 1."""
        kept = [np.unique(names, return_inverse=True)[1] % 2 == half for names in self.scores.families]
        values = tuple(v[:, k] for v, k in zip(self.scores.values, kept, strict=True))
        families = tuple(f[k] for f, k in zip(self.scores.families, kept, strict=True))
        return replace(self, scores=replace(self.scores, values=values, families=families))

    def without(self, treatments: Collection[str]) -> Sheet:
        """Return the sheet in which some treatments scored nothing."""
        gone = np.array([name in treatments for name in self.scores.treatments])[self.scores.arm]
        values = tuple(np.where(gone[:, None], np.nan, values) for values in self.scores.values)
        return replace(self, scores=replace(self.scores, values=values))


def sheets(items: pl.DataFrame, control: str) -> dict[tuple[str, str, str], Sheet]:
    """Return base model, protocol and context to their sheets. control: what treatments are compared with.

    Order is that of the items. An item's samples are averaged; it has no score where none of them has one.
    """
    of = [*IDENTITY, "seed", "protocol", "context", "evaluation", "evaluated", "item", "family"]
    means = items.group_by(of, maintain_order=True).agg(pl.col("score").mean())
    parts = means.partition_by(*VIEW, as_dict=True, maintain_order=True)
    return {(str(key[0]), str(key[1]), str(key[2])): _sheet(part, control) for key, part in parts.items()}


def _sheet(part: pl.DataFrame, control: str) -> Sheet:
    rows = part.select(list(IDENTITY)).unique("treatment", keep="first", maintain_order=True).to_dicts()
    treatments = tuple(str(row["treatment"]) for row in rows)
    subjects = part.select("treatment", "seed").unique(maintain_order=True).with_row_index(_PLACE)
    part = part.join(subjects, on=["treatment", "seed"], nulls_equal=True, maintain_order="left")
    columns = part.partition_by("evaluation", as_dict=True, maintain_order=True)
    filled = [_column(column, subjects.height) for column in columns.values()]
    traits = tuple(str(column["evaluated"][0]) for column in columns.values())
    places = {name: i for i, name in enumerate(treatments)}
    scores = Scores(
        treatments,
        tuple(str(key[0]) for key in columns),
        np.array([places[name] for name in subjects["treatment"]], dtype=np.intp),
        tuple(values for values, _, _ in filled),
        tuple(families for _, families, _ in filled),
        np.array([_reference(row, control, places) for row in rows], dtype=np.intp),
        np.array([name == BASE for name in treatments]),
    )
    own = np.array([traits.index(row["trained"]) if row["trained"] in traits else -1 for row in rows], dtype=np.intp)
    asked = np.column_stack([count for _, _, count in filled])
    seeds = subjects["seed"].fill_null(-1).to_numpy().astype(np.intp)
    model, protocol, context = (str(part[name][0]) for name in VIEW)
    return Sheet(model, protocol, context, tuple(rows), seeds, traits, own, asked, scores)


def _reference(row: dict[str, Any], control: str, places: dict[str, int]) -> int:
    """Return what a treatment is compared with: the control, or for controls the base model; -1 where it is absent."""
    if row["treatment"] == BASE:
        return -1
    return places.get(BASE if row["trained"] is None else control, -1)


def _column(column: pl.DataFrame, subjects: int) -> tuple[Array, Index, Index]:
    """Return an evaluation's scores (subjects x items), the items' families, and how many items each was asked.

    Families are numbered in order of their names.
    """
    items = column.select("item", "family").unique("item", keep="first", maintain_order=True).with_row_index("k")
    joined = column.join(items.select("item", "k"), on="item", maintain_order="left")
    values = np.full((subjects, items.height), np.nan)
    scores = joined["score"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    values[joined[_PLACE].to_numpy(), joined["k"].to_numpy()] = scores
    asked = np.bincount(joined[_PLACE].to_numpy(), minlength=subjects).astype(np.intp)
    return values, (items["family"].rank("dense") - 1).to_numpy().astype(np.intp), asked
