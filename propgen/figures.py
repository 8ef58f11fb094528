"""Figures: drawn from an experiment's tables alone. One function per figure: table in, figure out."""

from __future__ import annotations

import json
import logging
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from propgen.config import Style
from propgen.errors import PropgenError
from propgen.plan import Evaluation, Plan
from propgen.tables import MATRIX, check

log = logging.getLogger("propgen")

STABLE: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Options that keep the time of day out of files, so that the same table draws the same bytes."""
ANNOTATED = 14
"""Up to so many columns each cell shows its number."""
DETAILED = 6
"""Up to so many columns each cell shows its interval too."""
MARGIN = 1.15
"""The colour scale ends so far beyond the largest effect."""


@dataclass(frozen=True)
class Panel:
    """One heatmap: the effects of a base model under a protocol in a context.

    effects: treatments x evaluations, from the table. rows, columns: their names in order. controls: control - base.
    """

    table: pl.DataFrame
    model: str
    evaluations: Sequence[Evaluation]
    rows: Sequence[str]
    controls: Sequence[str]

    def grid(self, names: Sequence[str], value: str) -> NDArray[np.float64]:
        """Return a column of the table as treatments x evaluations, NaN where missing."""
        found = {(r["treatment"], r["evaluation"]): r[value] for r in self.table.iter_rows(named=True)}
        cells = [[found.get((name, e.name)) for e in self.evaluations] for name in names]
        return np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)


def draw(plan: Plan, folder: Path, style: Style) -> None:
    """Draw every figure of an experiment from the tables in `folder` into `folder/figures`."""
    unknown = [kind for kind in style.formats if kind not in STABLE]
    if unknown:
        raise PropgenError(f"style.formats: '{unknown[0]}' is unknown; expected some of {', '.join(STABLE)}")
    path = folder / "matrix.parquet"
    if not path.is_file():
        raise PropgenError(f"{path} is missing; `snakemake --cores all matrix` makes it")
    matrix = check(pl.read_parquet(path), MATRIX, str(path))
    about: dict[str, Any] = json.loads(pl.read_parquet_metadata(path)["propgen"])
    (folder / "figures").mkdir(exist_ok=True)
    with plt.rc_context(_settings(style)):
        for name, model, protocol, context in plan.panels:
            panel = _panel(plan, matrix, model, protocol, context)
            figure = heatmap(panel, caption(plan, panel, about), style)
            _save(figure, folder / "figures" / name, style)
            plt.close(figure)


def _settings(style: Style) -> dict[str, Any]:
    return {
        "font.family": style.font,
        "font.size": 15 * style.scale,
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


def _panel(plan: Plan, matrix: pl.DataFrame, model: str, protocol: str, context: str) -> Panel:
    evaluations = [e for e in plan.evaluations if (e.protocol, e.context) == (protocol, context)]
    return Panel(
        table=matrix.filter(model=model, protocol=protocol, context=context),
        model=model,
        evaluations=evaluations,
        rows=[t.name for t in plan.treatments if t.trained is not None],
        controls=[t.name for t in plan.treatments if t.control],
    )


def heatmap(panel: Panel, text: str, style: Style) -> Figure:
    """Draw treatments (rows) by evaluated traits (columns), and below them what the controls did to the base model.

    Both parts share one diverging scale that is centred at 0. Missing cells are hatched.
    """
    effects = panel.grid([*panel.rows, *panel.controls], "effect")
    largest = np.nanmax(np.abs(effects)) if np.isfinite(effects).any() else 1.0
    limit = float(largest) * MARGIN or 1.0
    figure = plt.figure(figsize=(style.width, style.height), layout="constrained")
    heights = [len(panel.rows), len(panel.controls)]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    for axes, names in ((top, panel.rows), (bottom, panel.controls)):
        _draw_grid(axes, panel, names, limit, style)
        axes.set_yticklabels([_row_label(panel, name) for name in names], rotation=0)
    top.tick_params(bottom=False)
    bottom.set_xticklabels([e.trait for e in panel.evaluations], rotation=_rotation(panel), ha=_alignment(panel))
    bottom.set_xlabel("evaluated trait", fontweight="bold")
    top.set_ylabel("finetuned on", fontweight="bold")
    unit = panel.evaluations[0].unit
    bar = figure.colorbar(top.collections[0], ax=[top, bottom], pad=0.015, fraction=0.03)
    bar.set_label(f"effect ({unit})")
    bar.outline.set_visible(False)  # type: ignore[reportCallIssue]
    figure.suptitle(f"What finetuning on one trait does to the others\n{panel.model}", fontsize=21 * style.scale)
    width = int(style.width * 11.2 / style.scale)
    figure.supxlabel(textwrap.fill(text, width), fontsize=10.5 * style.scale, ha="left", x=0.015, color="0.25")
    return figure


def _draw_grid(axes: Axes, panel: Panel, names: Sequence[str], limit: float, style: Style) -> None:
    effects = panel.grid(names, "effect")
    axes.set_facecolor("0.93")
    sns.heatmap(
        effects,
        ax=axes,
        cmap=style.palette,
        center=0,
        vmin=-limit,
        vmax=limit,
        linewidths=1.5,
        linecolor="white",
        cbar=False,
        annot=_annotations(panel, names, effects) if len(panel.evaluations) <= ANNOTATED else False,
        fmt="",
        annot_kws={"fontsize": _text_size(panel) * style.scale},
    )
    axes.set_yticks(np.arange(len(names)) + 0.5)
    axes.tick_params(length=0)
    _mark(axes, panel, names, effects)


def _annotations(panel: Panel, names: Sequence[str], effects: NDArray[np.float64]) -> NDArray[np.str_]:
    """Return each cell's text: the effect and, in a small matrix, its interval."""
    low, high = panel.grid(names, "ci_low"), panel.grid(names, "ci_high")
    detailed = len(panel.evaluations) <= DETAILED
    texts = np.full(effects.shape, "", dtype=object)
    for i, j in np.ndindex(effects.shape):
        if np.isfinite(effects[i, j]):
            texts[i, j] = _number(effects[i, j])
            if detailed and np.isfinite(low[i, j]):
                texts[i, j] += f"\n[{_number(low[i, j])}, {_number(high[i, j])}]"
    return texts


def _mark(axes: Axes, panel: Panel, names: Sequence[str], effects: NDArray[np.float64]) -> None:
    """Hatch missing cells; put a dark border on cells whose effect survives correction."""
    surviving = _survives(panel, names)
    for i, j in np.ndindex(effects.shape):
        if not np.isfinite(effects[i, j]):
            axes.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch="///", edgecolor="0.6", linewidth=0))
        elif surviving[i, j]:
            axes.add_patch(Rectangle((j + 0.02, i + 0.03), 0.96, 0.94, fill=False, edgecolor="0.1", linewidth=2.5))


def _survives(panel: Panel, names: Sequence[str], alpha: float = 0.05) -> NDArray[np.bool_]:
    """Off the diagonal q < alpha; on it, and for controls, p < alpha, since these are no search among many."""
    p, q = panel.grid(names, "p"), panel.grid(names, "q")
    return np.where(np.isfinite(q), q, np.where(np.isfinite(p), p, 1.0)) < alpha


def _number(value: float) -> str:
    """Return a signed number with a true minus sign and without a leading zero."""
    text = f"{value:+.2f}"
    text = text.replace("+0.", "+.").replace("-0.", "-.")
    return "0" if text in ("+.00", "-.00") else text.replace("-", "\u2212")


def _row_label(panel: Panel, name: str) -> str:
    """Return a row's label: the trait alone where all rows share one regime; a control with what it is compared to."""
    if name in panel.controls:
        return f"{name}\n\u2212 base model"
    rows = panel.table.filter(treatment=name)
    regimes = panel.table.filter(pl.col("trained").is_not_null())["regime"].n_unique()
    return str(rows["trained"][0]) if regimes == 1 and not rows.is_empty() else name


def _text_size(panel: Panel) -> float:
    return 15.0 if len(panel.evaluations) <= DETAILED else 11.0


def _rotation(panel: Panel) -> int:
    return 0 if len(panel.evaluations) <= DETAILED + 2 else 40


def _alignment(panel: Panel) -> str:
    return "center" if _rotation(panel) == 0 else "right"


def caption(plan: Plan, panel: Panel, about: dict[str, Any]) -> str:
    """Return what a reader of the figure alone needs: axes, unit, n, seeds, control, marks, and what it cannot show."""
    table = panel.table.filter(pl.col("trained").is_not_null())
    first = panel.evaluations[0]
    level = round(100 * float(plan.analysis["confidence"]))
    seeds, controls, items = (_span(table, name) for name in ("n_seeds", "n_controls", "n_items"))
    mde = table["mde"].median()
    sentences = [
        f"Rows: trait that a finetune was trained to show. Columns: trait that was evaluated ({first.label}; "
        f"{first.protocol}, context '{first.context}').",
        f"Colour and number: mean over seeds minus mean of control finetunes ({plan.control}), {first.unit}; "
        f"brackets: {level} % t interval for new seeds and new items.",
        f"n: {items} items, {seeds} seeds per row, {controls} control seeds.",
        "Border: differs from 0 after Benjamini-Hochberg correction within the matrix (diagonal and bottom row: "
        "uncorrected), p < .05 by a t test with as many degrees of freedom as the fewest seeds allow.",
        *([f"Median smallest effect detectable with 80 % power: {float(mde):.2f}."] if mde is not None else []),  # type: ignore[arg-type]
        "Bottom: what neutral finetuning alone does to the base model.",
        *_warnings(seeds, about),
    ]
    return " ".join(sentences)


def _warnings(seeds: str, about: dict[str, Any]) -> list[str]:
    found: list[str] = []
    if seeds in ("1", "2"):
        found.append(f"With {seeds} seed{'s' if seeds == '2' else ''} per row this is exploratory.")
    if missing := about.get("missing"):
        found.append(f"{len(missing)} cells are missing (hatched, or left out of means).")
    if len(about.get("execution", [])) > 1:
        found.append(f"Mixes engines or data types: {'; '.join(about['execution'])}.")
    return found


def _span(table: pl.DataFrame, column: str) -> str:
    low, high = table[column].min(), table[column].max()
    return str(low) if low == high else f"{low} to {high}"
