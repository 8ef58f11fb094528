"""The summary: what an experiment's tables say, in plain words, each number with the table that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from propgen.analysis import NONE, OPEN, TINY, TRANSFER
from propgen.gates import attrition
from propgen.plan import BASE, Plan, row_label

Frame = pl.DataFrame
DOT = " \u00b7 "
SHOWN = 8
"""Cells that are named."""
OFF = pl.col("trained").is_not_null() & (pl.col("trained") != pl.col("evaluated"))
OWN = pl.col("trained") == pl.col("evaluated")


def summarise(plan: Plan, matrix: Frame, gates: Frame, tables: Mapping[str, Frame]) -> str:
    """Return the page as Markdown."""
    lines = [f"# {plan.name}: what the tables say", ""]
    lines += [*_design(plan, matrix), "", *_gates(gates, attrition(gates)), ""]
    for view, part in matrix.group_by("model", "protocol", "context", maintain_order=True):
        lines += [f"## {DOT.join(map(str, view))}", "", *_view(plan, part, view, tables), ""]
    lines += [*_generality(tables["generality"]), *_limits(plan, matrix)]
    return "\n".join(lines).rstrip() + "\n"


def _link(name: str) -> str:
    where = {"matrix": "../matrix.parquet", "cells": "../cells.parquet"}.get(name, f"{name}.parquet")
    return f"[{where.rpartition('/')[2]}]({where})"


def _n(value: float | None, digits: int = 3) -> str:
    """Return a number in few digits, without a leading zero."""
    if value is None:
        return "unknown"
    text = f"{value:.{digits}g}" if abs(value) < 1e-3 or abs(value) >= 1 else f"{value:.{digits}f}".rstrip("0")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _between(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{_n(low)} to {_n(high)}"


def _with(row: Mapping[str, Any], name: str) -> str:
    """Return a number of a row with its interval."""
    return f"{_n(row[name])} ({_between(row[f'{name}_low'], row[f'{name}_high'])})"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# -- design, gates -------------------------------------------------------------------------------------------------


def _design(plan: Plan, matrix: Frame) -> list[str]:
    rows = matrix.filter(pl.col("trained").is_not_null())
    if rows.is_empty():
        return ["No row was trained on a trait, so there is no effect to report."]
    seeds, controls, items = (_span(rows, name) for name in ("n_seeds", "n_controls", "n_items"))
    against = "the base model" if plan.control == BASE else f"the control finetunes ({plan.control})"
    kind = "new seeds and new items of the same kind"
    if plan.analysis.get("estimand") == "fixed-items":
        kind = "new seeds and these very items"
    level = round(100 * float(plan.analysis["confidence"]))
    shape = f"{_many(rows['treatment'].n_unique(), 'row')}, {_many(rows['evaluation'].n_unique(), 'column')}"
    alpha = _n(float(plan.analysis["alpha"]))
    return [
        f"{shape}; seeds per row: {seeds}; control seeds: {controls}; items per column: {items} ({_link('matrix')}).",
        f"Effects are differences from {against}. Intervals are of {level} %, for {kind}. Off the diagonal p-values "
        f"are corrected within a base model, protocol and context (Benjamini-Hochberg, {alpha}).",
    ]


def _span(frame: Frame, column: str) -> str:
    low, high = frame[column].min(), frame[column].max()
    return str(low) if low == high else f"{low} to {high}"


def _gates(gates: Frame, counts: Frame) -> list[str]:
    lines = ["## Gates", ""]
    if gates.is_empty():
        return [*lines, "No gate could be applied, so nothing tells whether a row is sound."]
    lines += ["| base model | protocol | gate | rows | passed | in doubt | failed |", "| --- " * 7 + "|"]
    for row in counts.iter_rows(named=True):
        protocol = row["protocol"] or "all"
        numbers = [row[name] for name in ("n_rows", "passed", "inconclusive", "failed")]
        lines.append(f"| {row['model']} | {protocol} | {row['gate']} | {' | '.join(map(str, numbers))} |")
    kept = f"Failed rows are left out of everything below; {_link('matrix-all')} has all."
    lines += ["", f"Evidence: {_link('gates')}. {kept}"]
    for row in gates.filter(verdict="failed").iter_rows(named=True):
        bounds = f"{_n(row['value'])} ({_between(row['low'], row['high'])}), limit {_n(row['limit'])}"
        lines.append(f"- {row['treatment']} on {row['model']} failed '{row['gate']}': {bounds}.")
    return lines


# -- a view --------------------------------------------------------------------------------------------------------


def _view(plan: Plan, part: Frame, view: Iterable[object], tables: Mapping[str, Frame]) -> list[str]:
    lines = [*_own(part, float(plan.analysis["alpha"])), *_off(part, float(plan.analysis["alpha"])), *_controls(part)]
    key = dict(zip(("model", "protocol", "context"), map(str, view), strict=True))
    return lines + [line for name, tell in TELLERS.items() for line in tell(tables[name].filter(**key))]


def _own(part: Frame, alpha: float) -> list[str]:
    own = part.filter(OWN).drop_nulls("effect")
    if own.is_empty():
        return []
    low, high = own["effect"].min(), own["effect"].max()
    line = f"- **Own effects**: {_many(own.height, 'row')}, from {_n(low)} to {_n(high)}"  # type: ignore[arg-type]
    sure = own.drop_nulls("ci_low")
    if sure.is_empty():
        return [f"{line}; no intervals ({_link('matrix')})."]
    above, tested = sure.filter(pl.col("ci_low") > 0).height, own.drop_nulls("p")
    found = tested.filter(pl.col("p") < alpha).height
    said = f"; the interval is above 0 in {above} of {sure.height}, and {found} of {tested.height} tests find them"
    return [f"{line}{said} ({_link('matrix')})."]


def _off(part: Frame, alpha: float) -> list[str]:
    cells = part.filter(OFF).drop_nulls("effect")
    if cells.is_empty():
        return []
    rms = float((cells["effect"] ** 2).mean() or 0.0) ** 0.5  # type: ignore[arg-type]
    lines = [f"- **Off the diagonal**: {_many(cells.height, 'cell')}, root mean square {_n(rms)}."]
    tested = cells.drop_nulls("q")
    if tested.is_empty():
        return [*lines, "  Nothing is tested: with one seed per row no cell can be called different from 0."]
    hits, holm = tested.filter(pl.col("q") < alpha).sort("q"), tested.filter(pl.col("p_holm") < alpha).height
    mde = _n(tested["mde"].median())  # type: ignore[arg-type]
    lines.append(
        f"  {hits.height} of {tested.height} differ from 0 after correction ({holm} by Holm's, for the family as a "
        f"whole). Median smallest effect that a single test finds with 80 % power: {mde}."
    )
    words = dict(tested["verdict"].value_counts().iter_rows())
    counts = ", ".join(f"{words.get(name, 0)} {name}" for name in (TRANSFER, TINY, NONE, OPEN))
    lines.append(f"  Verdicts: {counts} ({_link('matrix')}).")
    for row in hits.head(SHOWN).iter_rows(named=True):
        shown = f"{_n(row['effect'])} ({_between(row['fcr_low'], row['fcr_high'])})"
        shrunk = f"drawn together {_n(row['effect_shrunk'])}"
        name = row_label(row["trained"], row["variant"])
        lines.append(f"  - {name} on {row['evaluated']}: {shown}, {shrunk}, q {_n(row['q'])}")
    if hits.height:
        lines.append("  In brackets: intervals for cells that were picked for being significant (false coverage rate).")
    return lines


def _controls(part: Frame) -> list[str]:
    rows = part.filter(pl.col("trained").is_null()).drop_nulls("effect")
    if rows.is_empty():
        return []
    largest = rows.sort(pl.col("effect").abs(), descending=True).row(0, named=True)
    bounds = _between(largest["ci_low"], largest["ci_high"])
    shift = f"{_n(largest['effect'])} ({bounds}), {largest['treatment']} on {largest['evaluated']}"
    return [f"- **Controls against the base model**: largest shift {shift} ({_link('matrix')})."]


def _agreement(found: Frame) -> Iterator[str]:
    for row in found.drop_nulls("r").iter_rows(named=True):
        yield (
            f"- **Do seeds agree** on which traits go together (residuals of rows and columns)? Two seeds correlate at "
            f"{_with(row, 'r')}, on other halves of the items at {_with(row, 'r_split')}; reliability of the mean "
            f"{_with(row, 'reliability')} ({_link('agreement')})."
        )


def _structure(found: Frame) -> Iterator[str]:
    for row in found.iter_rows(named=True):
        if row["rank"] is not None:
            left = "" if row["rank_left_out"] is None else f"; {row['rank_left_out']} predict a left-out seed best"
            yield (
                f"- **Directions**: {row['rank']} stand out from what noise alone reaches (first singular value "
                f"{_n(row['singular_1'])}, noise {_n(row['null'])}){left} ({_link('structure')})."
            )
        if row["reciprocity"] is not None:
            noise = "" if row["n_seeds"] > 1 else ", noise not taken out"
            yield (
                f"- **Reciprocity** of residuals (does i move j as j moves i?): {_n(row['reciprocity'])}, p "
                f"{_n(row['p_reciprocity'])}{noise} ({_link('structure')})."
            )


def _models(found: Frame) -> Iterator[str]:
    if not found.is_empty():
        fits = [f"{row['fit']} {_n(row['r2'])} (error {_n(row['r2_se'])})" for row in found.iter_rows(named=True)]
        said = "; ".join(fits)
        yield f"- **Which model predicts unseen cells?** R2 against predicting 0: {said} ({_link('models')})."


def _ledger(found: Frame) -> Iterator[str]:
    parts = found.drop_nulls("share").sort("share", descending=True)
    if not parts.is_empty():
        shares = [f"{row['component']} {100 * row['share']:.1f} %" for row in parts.iter_rows(named=True)]
        yield f"- **What varies**: {', '.join(shares)} ({_link('ledger')})."


TELLERS = {"agreement": _agreement, "structure": _structure, "models": _models, "ledger": _ledger}


# -- across views, limits ------------------------------------------------------------------------------------------


def _generality(found: Frame) -> list[str]:
    if found.is_empty():
        return []
    lines = ["## How general is the pattern?", "", "Residuals off the diagonal, correlated between two views:", ""]
    for row in found.iter_rows(named=True):
        corrected = "" if row["r_corrected"] is None else f"; corrected for reliability {_n(row['r_corrected'], 2)}"
        names = f"{_name(row, '')} and {_name(row, '_b')}"
        lines.append(f"- across {row['across']}: {names}: {_with(row, 'r')}, p {_n(row['p'])}{corrected}")
    return [*lines, "", f"Intervals are for other traits; p by permutation of traits ({_link('generality')}).", ""]


def _name(row: Mapping[str, Any], suffix: str) -> str:
    return DOT.join(str(row[f"{part}{suffix}"]) for part in ("model", "regime", "protocol", "context"))


def _limits(plan: Plan, matrix: Frame) -> list[str]:
    """Return what these tables cannot say."""
    rows = matrix.filter(pl.col("trained").is_not_null())
    lines = ["## What this cannot say", ""]
    if not rows.is_empty() and int(rows["n_seeds"].max() or 0) < 2:  # type: ignore[arg-type]
        lines.append("- One seed per row: no cell is tested, and intervals, if any, borrow the controls' variance.")
    if plan.control == BASE:
        lines.append(
            "- No control finetunes: effects hold whatever any finetuning does to the model, so a shift that all rows "
            "share says nothing of traits. Residuals of rows and columns are free of it."
        )
    if not rows.is_empty() and int(rows["n_items"].max() or 0) < 2:  # type: ignore[arg-type]
        lines.append("- No items: how far results depend on the questions that were asked is unknown.")
    if rows["trained"].n_unique() < 12:
        lines.append("- Fewer than 12 trained traits: whatever is said of the pattern as a whole has little power.")
    lines.append("- Each trait stands for the data that trained it and the items that test it; other data may differ.")
    return lines
