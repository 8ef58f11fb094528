"""Figures: drawn from an experiment's tables alone. One function per figure: table in, figure out."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl
from matplotlib.figure import Figure
from matplotlib.style import context

from propgen import charts
from propgen.config import Style
from propgen.errors import InputError, PropgenError, nearest
from propgen.gates import FAILED, INCONCLUSIVE
from propgen.heatmap import ANNOTATED, DETAILED, Panel, heatmap
from propgen.plan import Plan, row_label
from propgen.power import POWERS
from propgen.sheet import VIEW
from propgen.tables import COMOVEMENT, LEDGER, LOADINGS, MATRIX, check, read_table

log = logging.getLogger("propgen")

STABLE: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Options that keep the time of day out of files, so that the same table draws the same bytes."""
MARGIN = 1.15
"""The colour scale ends so far beyond the largest effect."""
DOT = "  \u00b7  "
FEW = 3
"""With fewer seeds than this a figure is called exploratory."""


def draw(plan: Plan, folder: Path, style: Style) -> None:
    """Draw every figure of an experiment from the tables in `folder` into `folder/figures`."""
    _check_style(style)
    matrix, about = read_matrix(folder / "matrix.parquet")
    (folder / "figures").mkdir(exist_ok=True)
    with context(["default", settings(style)]):
        for name, *view in plan.panels:
            panel = make_panel(plan, matrix, *view)
            figure = heatmap(panel, caption(plan, panel, about), style)
            _save(figure, folder / "figures" / name, style)
        for kind, name, *view in plan.charts:
            _save(_chart(plan, folder / "statistics", kind, view, style), folder / "figures" / name, style)


def _chart(plan: Plan, folder: Path, kind: str, view: Sequence[str], style: Style) -> Figure:
    """Draw one chart from the statistics of a model, protocol and context."""
    schemas = {"power": POWERS, "ledger": LEDGER, "comovement": COMOVEMENT, "loadings": LOADINGS}
    key = dict(zip(VIEW, view, strict=True))

    def part(name: str) -> pl.DataFrame:
        return read_table(folder / f"{name}.parquet", schemas[name]).filter(**key)

    title = DOT.join(view)
    if kind == "comovement":
        return charts.comovement(part("comovement"), part("loadings"), title, style)
    if kind == "power":
        unit = next(e.unit for e in plan.columns if (e.protocol, e.context) == tuple(view[1:]))
        return charts.power(part("power"), unit, title, style)
    return charts.ledger(part("ledger"), title, style)


def _check_style(style: Style) -> None:
    for kind in style.formats:
        if kind not in STABLE:
            raise InputError(f"style.formats: '{kind}' is unknown; expected some of {', '.join(STABLE)}")
    if style.palette not in matplotlib.colormaps:
        raise InputError(f"style.palette: '{style.palette}' is unknown; {nearest(style.palette, matplotlib.colormaps)}")


def read_matrix(path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the matrix table and what its metadata says of the whole. Raises PropgenError if it cannot be read."""
    if not path.is_file():
        raise PropgenError(f"{path} is missing; run the experiment with snakemake to make it")
    data = path.read_bytes()
    try:
        about: dict[str, Any] = json.loads(pl.read_parquet_metadata(data)["propgen"])
        return check(pl.read_parquet(data), MATRIX, str(path)), about
    except (pl.exceptions.PolarsError, KeyError, ValueError) as error:
        raise PropgenError(f"{path} is damaged; delete it and run the experiment with snakemake again") from error


def settings(style: Style) -> dict[Any, Any]:
    """Return matplotlib's settings beside its defaults: names are shown as they are, and files are always the same."""
    return {
        "font.family": style.font,
        "text.parse_math": False,
        "svg.hashsalt": "propgen",
        "pdf.fonttype": 42,
        "hatch.linewidth": 0.6,
    }


def _save(figure: Figure, path: Path, style: Style) -> None:
    for kind in style.formats:
        target = path.with_name(f"{path.name}.{kind}")
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            figure.savefig(fresh, format=kind, dpi=style.dpi, **STABLE[kind])
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
        log.info("%s", target)


def make_panel(plan: Plan, matrix: pl.DataFrame, model: str, protocol: str, context: str) -> Panel:
    """Return one heatmap's rows of the matrix. All heatmaps of a protocol share one colour scale."""
    trained = [treatment for treatment in plan.treatments if treatment.trained]
    alike = len({treatment.regime for treatment in trained}) == 1
    largest = matrix.filter(protocol=protocol)["effect"].abs().max()
    return Panel(
        table=matrix.filter(model=model, protocol=protocol, context=context),
        title=f"{model}{DOT}{protocol}, {context}",
        evaluations=[e for e in plan.evaluations if (e.protocol, e.context) == (protocol, context)],
        rows={t.name: row_label(t.trained, t.variant) if alike else t.name for t in trained},
        controls={t.name: t.name for t in plan.treatments if t.control},
        limit=MARGIN * float(largest) if largest else 1.0,  # type: ignore[arg-type]
        alpha=float(plan.analysis["alpha"]),
    )


def caption(plan: Plan, panel: Panel, about: dict[str, Any]) -> str:
    """Return what a reader of the figure alone needs: axes, unit, n, seeds, control, marks, and what it cannot show."""
    table = panel.table.filter(pl.col("trained").is_not_null())
    first = panel.evaluations[0]
    shown = "Colour and number" if panel.at_most(ANNOTATED) else "Colour"
    level = round(100 * float(plan.analysis["confidence"]))
    sentences = [
        f"Rows: trait that a finetune was trained to show. Columns: trait that was evaluated ({first.label}; "
        f"{first.protocol}, context '{first.context}').",
        f"{shown}: mean over seeds minus mean of control finetunes ({plan.control}), {first.unit}.",
    ]
    if panel.at_most(DETAILED) and table["ci_low"].count():
        sentences.append(f"Brackets: {level} % t interval for new seeds and new items.")
    seen = table.drop_nulls("effect")
    if not seen.is_empty():
        items, seeds = _span(seen, "n_items", "item"), _span(seen, "n_seeds", "seed")
        sentences.append(f"n: {items}, {seeds} per row, {_span(seen, 'n_controls', 'control seed')}.")
        sentences.append(_marks(panel))
    sentences.append("Bottom: what neutral finetuning alone does to the base model.")
    return " ".join([*sentences, *_warnings(table, about)])


def _marks(panel: Panel) -> str:
    alpha = f"{panel.alpha:g}".lstrip("0")
    if not panel.table["p"].count():
        return "No cell has a border, since nothing can be tested with so few seeds."
    mde = panel.table.filter(pl.col("trained").is_not_null())["mde"].median()
    power = "" if mde is None else f" Median smallest effect that this test finds with 80 % power: {float(mde):.2g}."  # type: ignore[arg-type]
    return (
        "Border: differs from 0 after Benjamini-Hochberg correction within the matrix (diagonal and bottom rows: "
        f"uncorrected), p < {alpha} by a t test with moderated variances.{power}"
    )


def _warnings(table: pl.DataFrame, about: dict[str, Any]) -> list[str]:
    found: list[str] = []
    seen = table.drop_nulls("effect")
    if not seen.is_empty() and int(seen["n_seeds"].min()) < FEW:  # type: ignore[arg-type]
        found.append(f"With fewer than {FEW} seeds per row this is exploratory.")
    failed = table.filter(pl.col("gate").str.starts_with(FAILED))
    if names := failed["treatment"].unique(maintain_order=True).to_list():
        found.append(f"Hatched rows failed a gate and are left out: {', '.join(names)}.")
    if unscored := table["effect"].null_count() - failed["effect"].null_count():
        found.append(f"{unscored} hatched cells have no number, since no answer of a finetune could be scored.")
    if doubted := table.filter(pl.col("gate").str.starts_with(INCONCLUSIVE))["treatment"].n_unique():
        found.append(f"{doubted} rows are in doubt at a gate.")
    if missing := about.get("missing"):
        found.append(f"{len(missing)} cells of the experiment are missing (hatched, or left out of means).")
    if len(about.get("execution", [])) > 1:
        found.append(f"Mixes engines or data types: {'; '.join(about['execution'])}.")
    return found


def _span(table: pl.DataFrame, column: str, noun: str) -> str:
    """Return how many there are of something, as in `3 to 5 seeds`."""
    low, high = table[column].min(), table[column].max()
    return f"{low if low == high else f'{low} to {high}'} {noun}{'' if high == 1 else 's'}"
