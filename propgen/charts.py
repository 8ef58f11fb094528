"""Charts: what holds of a matrix as a whole, one function per figure, from its tables of statistics."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import polars as pl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from propgen.config import Style
from propgen.heatmap import CAPTION_SIZE, SLIDE, SUBTITLE_SIZE, TITLE_SIZE
from propgen.layout import LINE, MARGIN

Frame = pl.DataFrame
SIZE, SMALL = 14.0, 11.0
"""Sizes of labels, and of numbers in cells."""
HEAD = 1.4
"""Height of the title, inches of a slide."""
WORDS = 165
"""Characters of a line of a caption on a slide."""


class Room(NamedTuple):
    """Inches of a slide that axes leave free at the left and above the caption."""

    left: float = 1.2
    below: float = 0.75


USUAL = Room()


def page(
    style: Style, title: str, subtitle: str, caption: str, columns: int = 1, room: Room = USUAL
) -> tuple[Figure, list[Axes], float]:
    """Return a figure with title, caption and axes side by side, and the scale of its text."""
    scale = style.scale * min(style.width / SLIDE[0], style.height / SLIDE[1])
    figure = Figure(figsize=(style.width, style.height))
    top = 1 - MARGIN * scale / style.height
    figure.text(0.5, top, title, fontsize=TITLE_SIZE * scale, color="0.1", ha="center", va="top")
    below = top - 1.4 * TITLE_SIZE * scale / 72 / style.height
    figure.text(0.5, below, subtitle, fontsize=SUBTITLE_SIZE * scale, color="0.35", ha="center", va="top")
    lines = textwrap.wrap(caption, int(WORDS * style.width / SLIDE[0] / scale))
    left = MARGIN / style.width
    figure.text(left, MARGIN / 2 / style.height, "\n".join(lines), fontsize=CAPTION_SIZE * scale, color="0.25")
    foot = MARGIN / 2 + (len(lines) * CAPTION_SIZE * LINE / 72 + room.below) * scale
    grid = figure.add_gridspec(
        1,
        columns,
        left=room.left * scale / style.width,
        right=0.97,
        top=1 - HEAD * scale / style.height,
        bottom=foot / style.height,
        wspace=0.22,
    )
    return figure, [figure.add_subplot(grid[0, i]) for i in range(columns)], scale


def power(table: Frame, unit: str, title: str, style: Style) -> Figure:
    """Draw the smallest detectable effect over items, a line for each number of seeds, with the most controls' table.

    table: of one view, as in `power.parquet`.
    """
    known = table.drop_nulls("mde")
    controls = [8] if 8 in known["n_controls"].to_list() else known["n_controls"].unique().sort().to_list()[-1:]
    shown = known.filter(pl.col("n_controls").is_in(controls))
    caption = (
        "Smallest effect that a two-sided test finds with 80 % power, for new seeds and new items. Left: one test at "
        f".05; right: after a Bonferroni correction for {_first(table, 'n_cells')} cells. Lines: seeds per row, "
        f"against {_first(shown, 'n_controls')} control seeds. Standard deviations here: {_deviations(table)}. "
        "With one seed there is no test. Other traits, data or models may vary more or less."
    )
    figure, axes, scale = page(style, "How small an effect can this design find?", title, caption, 2)
    if shown.is_empty():
        _nothing(axes, "With one seed per row nothing can be tested.", scale)
        return figure
    for place, name, label in ((0, "mde", "one test"), (1, "mde_corrected", "a search among all cells")):
        data = shown.select("n_items", pl.col("n_seeds").cast(pl.String).alias("seeds"), name)
        frame = {key: data[key].to_list() for key in data.columns}
        sns.lineplot(
            x=frame["n_items"],
            y=frame[name],
            hue=frame["seeds"],
            style=frame["seeds"],
            markers=True,
            dashes=False,
            palette="colorblind",
            linewidth=2.5 * scale,
            markersize=9 * scale,
            legend="full" if place else False,
            ax=axes[place],
        )
        _label(axes[place], "items per evaluation", f"effect ({unit})" if not place else "", scale)
        axes[place].set_title(label, fontsize=SIZE * scale, color="0.2")
        axes[place].set_ylim(0, None)
        axes[place].set_xticks(sorted(set(frame["n_items"])))
    legend = axes[1].legend(title="seeds per row", fontsize=SIZE * scale, frameon=False)
    legend.get_title().set_fontsize(SIZE * scale)
    return figure


def ledger(table: Frame, title: str, style: Style) -> Figure:
    """Draw how much of the variance each component has, a bar for each, with intervals.

    table: of one view, as in `ledger.parquet`.
    """
    caption = (
        "Components of the variance of item scores over the trained rows, by analysis of variance (treatments x seeds "
        "x evaluations x items, all random). Bars: share of the sum of what is above 0; lines: 95 % interval by "
        "leaving out each treatment in turn. 'treatment x evaluation' is what a matrix of effects shows; 'treatment x "
        "item' is how much it depends on the questions that were asked, 'seed' and 'seed x evaluation' on the run."
    )
    figure, (axis,), scale = page(style, "What makes scores differ?", title, caption, room=Room(left=2.7))
    known = table.drop_nulls("share")
    if known.is_empty():
        _nothing([axis], "Too few complete rows, seeds or items to tell.", scale)
        return figure
    total = float(known["variance"].clip(0).sum())
    shares = known["share"].to_numpy()
    sns.barplot(x=shares, y=known["component"].to_list(), color=sns.color_palette("colorblind")[0], ax=axis)
    for place, row in enumerate(known.iter_rows(named=True)):
        low, high = (max(0.0, (row[name] or 0.0) / total) for name in ("low", "high"))
        if row["low"] is not None:
            axis.plot([low, high], [place, place], color="0.2", linewidth=2 * scale)
        right = max(float(shares[place]), high) + 0.01
        axis.text(right, place, f"{100 * row['share']:.1f} %", fontsize=SMALL * scale, va="center")
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    _label(axis, "share of variance", "", scale)
    return figure


def comovement(table: Frame, loadings: Frame, title: str, style: Style) -> Figure:
    """Draw how evaluated traits move together across finetunes, in the order of their clusters.

    table: of one view, as in `comovement.parquet`. loadings: of the same view.
    """
    traits = table["evaluated"].unique(maintain_order=True).to_list()
    places = dict(loadings.drop_nulls("place").select("evaluated", "place").unique().iter_rows())
    traits = sorted(traits, key=lambda trait: (places.get(trait, 0), trait))
    values = _square(table, traits, "r")
    caption = (
        "Correlation of two evaluated traits' effects over all finetunes (rows x seeds), cells of a row's own trait "
        "left out. This says which evaluations rise and fall together, and nothing of what training one trait does to "
        "another. Order: average linkage on residuals of rows and columns; lines part its clusters. Few rows stand "
        "behind each number, and what all rows share is in it."
    )
    figure, axes, scale = page(style, "Which traits move together", title, caption, room=Room(below=1.6))
    axis = axes[0]
    if not np.isfinite(values).any():
        _nothing(axes, "Too few finetunes to correlate.", scale)
        return figure
    sns.heatmap(
        values,
        mask=~np.isfinite(values),
        vmin=-1,
        vmax=1,
        center=0,
        cmap=style.palette,
        square=True,
        annot=np.vectorize(_short)(values) if len(traits) <= 14 else False,
        fmt="",
        annot_kws={"fontsize": SMALL * scale},
        linewidths=1,
        xticklabels=traits,
        yticklabels=traits,
        cbar_kws={"label": "correlation", "shrink": 0.9},
        ax=axis,
    )
    groups = dict(loadings.drop_nulls("cluster").select("evaluated", "cluster").unique().iter_rows())
    for edge in range(1, len(traits)):
        if groups.get(traits[edge]) != groups.get(traits[edge - 1]):
            axis.axhline(edge, color="0.1", linewidth=2 * scale)
            axis.axvline(edge, color="0.1", linewidth=2 * scale)
    axis.tick_params(length=0, labelsize=SIZE * scale * min(1.0, 12 / max(len(traits), 1)))
    axis.set_yticks(axis.get_yticks(), traits, rotation=0)
    axis.set_xticks(axis.get_xticks(), traits, rotation=50, ha="right", rotation_mode="anchor")
    return figure


def _square(table: Frame, traits: list[str], name: str) -> np.ndarray:
    found = {(row["evaluated"], row["other"]): row[name] for row in table.iter_rows(named=True)}
    cells = [[found.get((a, b)) for b in traits] for a in traits]
    return np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)


def _short(value: float) -> str:
    """Return a correlation to one digit, as in `.7` and with a true minus sign."""
    text = f"{value:.1f}".replace("0.", ".").replace("-", "\u2212")
    return "0" if text in (".0", "\u2212.0") else text


def _label(axis: Axes, x: str, y: str, scale: float) -> None:
    axis.set_xlabel(x, fontsize=SIZE * scale)
    axis.set_ylabel(y, fontsize=SIZE * scale)
    axis.tick_params(labelsize=SIZE * scale)
    sns.despine(ax=axis)


def _nothing(axes: list[Axes], text: str, scale: float) -> None:
    """Say that there is nothing to draw, and why."""
    for axis in axes:
        axis.set_axis_off()
    axes[0].text(0.5, 0.5, text, fontsize=SIZE * scale, ha="center", transform=axes[0].transAxes)


def _first(table: Frame, name: str) -> object:
    return table[name][0] if table.height else "no"


def _deviations(table: Frame) -> str:
    if table.is_empty():
        return "unknown"
    row: Mapping[str, float] = cast("Mapping[str, float]", table.row(0, named=True))
    seeds = f"seeds {row['seed']:.2g}, control seeds {row['control']:.2g}"
    return f"{seeds}, items under a treatment {row['interaction']:.2g}, noise {row['residual']:.2g}"
