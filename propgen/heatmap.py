"""The heatmap: effects of treatments (rows) on evaluated traits (columns), laid out so that every text has room.

Places and widths are in inches, from the figure's lower left corner; sizes of text are in points.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import polars as pl
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from propgen.config import Style
from propgen.layout import ANGLE, LINE, MARGIN, PAD, SCALE_GAP, SCALE_WIDTH, Labels, Layout, lay_out
from propgen.plan import Evaluation

TITLE = "What finetuning on one trait does to the others"
ROWS, COLUMNS, STRIP = "finetuned on", "evaluated on", "control \u2212 base"
"""Headings of the rows, of the columns, and of the controls' rows."""
SLIDE = (13.333, 7.5)
TITLE_SIZE, SUBTITLE_SIZE, NUMBER_SIZE, SCALE_SIZE, CAPTION_SIZE = 23.0, 15.0, 18.0, 14.0, 10.5
ANNOTATED, DETAILED = (14, 20), (6, 8)
"""Up to so many columns and rows each cell shows its number, and its interval too."""
DROP = -0.1
"""By so much of their size digits stand above the middle of a line, whose descenders they lack."""


@dataclass(frozen=True)
class Panel:
    """One heatmap: the effects of a base model under a protocol in a context.

    table: its rows of the matrix. rows, controls: treatment to label, in order; controls are compared with the base
    model. limit: where the colour scale ends, in the score's unit. alpha: level of the marks.
    """

    table: pl.DataFrame
    title: str
    evaluations: Sequence[Evaluation]
    rows: Mapping[str, str]
    controls: Mapping[str, str]
    limit: float
    alpha: float

    def grid(self, names: Iterable[str], value: str) -> NDArray[np.float64]:
        """Return a column of the table as treatments x evaluations, NaN where missing."""
        found = {(r["treatment"], r["evaluation"]): r[value] for r in self.table.iter_rows(named=True)}
        cells = [[found.get((name, e.name)) for e in self.evaluations] for name in names]
        return np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)

    def survives(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Off the diagonal q < alpha; on it, and for controls, p < alpha, since these are no search among many."""
        names = list(names)
        p, q = self.grid(names, "p"), self.grid(names, "q")
        return np.where(np.isfinite(q), q, np.where(np.isfinite(p), p, 1.0)) < self.alpha

    def at_most(self, size: tuple[int, int]) -> bool:
        """Return whether the matrix, controls included, has no more columns and rows than this."""
        return len(self.evaluations) <= size[0] and len(self.rows) + len(self.controls) <= size[1]


def heatmap(panel: Panel, caption: str, style: Style) -> Figure:
    """Draw treatments by evaluated traits, and below them, apart, what the controls did to the base model.

    Both parts share one diverging scale that is centred at 0. Missing cells are hatched. Sizes of text are those of a
    slide, and grow and shrink with the page.
    """
    page = min(style.width / SLIDE[0], style.height / SLIDE[1])
    style = replace(style, scale=style.scale * page)
    figure = Figure(figsize=(style.width, style.height))
    FigureCanvasAgg(figure)  # measures texts
    _Drawing(figure, panel, style).draw(caption)
    return figure


@dataclass(frozen=True)
class _Drawing:
    figure: Figure
    panel: Panel
    style: Style

    def draw(self, caption: str) -> None:
        panel = self.panel
        place = lay_out(self.labels(), self.style, self.write_title(), self.write_caption(caption))
        upper = self.draw_cells(place, panel.rows, place.top, ROWS)
        below = place.top - place.height * len(panel.rows) - place.gap
        self.label_columns(place, self.draw_cells(place, panel.controls, below, STRIP))
        self.draw_scale(place, upper)

    # -- texts around the cells ------------------------------------------------------------------------------------

    def width(self, text: str, weight: str = "normal") -> float:
        """Return a text's width per point of its size, with some slack for the rounding of glyphs."""
        font = FontProperties(family=self.style.font, size=20, weight=weight)
        renderer = cast(FigureCanvasAgg, self.figure.canvas).get_renderer()
        return 1.02 * renderer.get_text_width_height_descent(text, font, ismath=False)[0] / self.figure.dpi / 20

    def labels(self) -> Labels:
        """Return the widths of everything that stands beside and below the cells."""
        panel = self.panel
        rows = [self.width(label) for label in (*panel.rows.values(), *panel.controls.values())]
        headings = [self.width(heading, "bold") for heading in (ROWS, STRIP)]
        return Labels(rows, [self.width(evaluation.trait) for evaluation in panel.evaluations], max(headings))

    def write_title(self) -> float:
        """Write title and subtitle; returns the height at which they end."""
        top, room = self.style.height - MARGIN, self.style.width - 2 * MARGIN
        for text, size, color in ((TITLE, TITLE_SIZE, "0.1"), (self.panel.title, SUBTITLE_SIZE, "0.35")):
            fitting = min(size * self.style.scale, room / self.width(text))
            place = (0.5, top / self.style.height)
            self.figure.text(*place, text, fontsize=fitting, color=color, ha="center", va="top")
            top -= fitting * LINE / 72
        return top - PAD

    def write_caption(self, text: str) -> float:
        """Write the caption over the whole width; returns the height at which it begins."""
        size = CAPTION_SIZE * self.style.scale
        room = (self.style.width - 2 * MARGIN) / size
        count = int(1.1 * len(text) * room / self.width(text))
        while max(map(self.width, lines := textwrap.wrap(text, count))) > room:
            count -= 1
        place = (MARGIN / self.style.width, MARGIN / 2 / self.style.height)
        self.figure.text(*place, "\n".join(lines), fontsize=size, color="0.25", va="bottom")
        return MARGIN / 2 + len(lines) * size * LINE / 72 + PAD

    def label_columns(self, place: Layout, axes: Axes) -> None:
        """Label the columns below the lowest row, flat where all of them have room, and slanted otherwise."""
        names = [evaluation.trait for evaluation in self.panel.evaluations]
        slanted: dict[str, Any] = (
            {} if place.flat else {"rotation": math.degrees(ANGLE), "ha": "right", "rotation_mode": "anchor"}
        )
        axes.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=place.label, **slanted)
        _write(axes, COLUMNS, (0.5, 0), (0, -place.below * 72), place.heading, va="top")

    def draw_scale(self, place: Layout, axes: Axes) -> None:
        """Draw the colour scale to the right of both parts, unless there is nothing to read from it."""
        panel = self.panel
        if not np.isfinite(panel.grid([*panel.rows, *panel.controls], "effect")).any():
            return
        height = place.height * (len(panel.rows) + len(panel.controls)) + place.gap
        left = place.left + place.width * len(panel.evaluations) + SCALE_GAP
        bar = self.figure.colorbar(
            cast(QuadMesh, axes.collections[0]), cax=self.add_axes(left, place.top - height, SCALE_WIDTH, height)
        )
        bar.outline.set_visible(False)  # type: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=SCALE_SIZE * self.style.scale)
        bar.ax.locator_params(axis="y", nbins=max(2, min(8, int(2 * height))))
        label = f"effect ({panel.evaluations[0].unit})"
        bar.set_label(label, labelpad=10, fontsize=min(SCALE_SIZE * self.style.scale, height / self.width(label)))

    # -- cells -----------------------------------------------------------------------------------------------------

    def add_axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        wide, high = self.style.width, self.style.height
        return self.figure.add_axes((left / wide, bottom / high, width / wide, height / high))

    def draw_cells(self, place: Layout, labels: Mapping[str, str], top: float, heading: str) -> Axes:
        """Draw the rows of some treatments below a height, with their labels and a heading over these."""
        panel, height = self.panel, place.height * len(labels)
        axes = self.add_axes(place.left, top - height, place.width * len(panel.evaluations), height)
        axes.set_facecolor("0.93")
        sns.heatmap(
            panel.grid(labels, "effect"),
            ax=axes,
            cmap=self.style.palette,
            center=0,
            vmin=-panel.limit,
            vmax=panel.limit,
            linewidths=min(1.5, 4 * place.height),
            linecolor="white",
            cbar=False,
            xticklabels=False,
            yticklabels=False,
        )
        axes.set_yticks(np.arange(len(labels)) + 0.5, list(labels.values()), fontsize=place.label, rotation=0)
        axes.tick_params(length=0, pad=PAD * 36)
        _write(axes, heading, (0, 1), (-PAD * 36, PAD * 36), place.heading, ha="right", va="bottom")
        self.mark(axes, labels, place)
        self.annotate(axes, labels, place)
        return axes

    def mark(self, axes: Axes, names: Iterable[str], place: Layout) -> None:
        """Hatch missing cells; put a dark border, whole within the cell, on those whose effect survives correction."""
        line = self.border(place)
        x, y = line / 72 / place.width, line / 72 / place.height
        surviving = self.panel.survives(names)
        for (i, j), effect in np.ndenumerate(self.panel.grid(names, "effect")):
            if not np.isfinite(effect):
                axes.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch="///", edgecolor="0.6", linewidth=0))
            elif surviving[i, j]:
                box = Rectangle((j + x, i + y), 1 - 2 * x, 1 - 2 * y, fill=False, edgecolor="0.05", linewidth=line)
                axes.add_patch(box)

    def border(self, place: Layout) -> float:
        """Return the width of a significant cell's border, in points."""
        return min(3.0 * self.style.scale, 8 * min(place.width, place.height))

    def annotate(self, axes: Axes, names: Iterable[str], place: Layout) -> None:
        """Write each cell's effect and, in a small matrix, its interval below it, as large as all have room."""
        panel = self.panel
        if not panel.at_most(ANNOTATED):
            return
        effects, low, high = (panel.grid(names, value) for value in ("effect", "ci_low", "ci_high"))
        size, small = self.number_sizes(place)
        colors = colormaps[self.style.palette]
        for (i, j), effect in np.ndenumerate(effects):
            if not np.isfinite(effect):
                continue
            both = panel.at_most(DETAILED) and bool(np.isfinite(low[i, j]))
            color = _readable_on(colors(0.5 + effect / panel.limit / 2))
            write = partial(_write, axes, at=(j + 0.5, i + 0.5), to="data", color=color, weight="normal", va="center")
            write(text=number(effect), offset=(0, DROP * size + (0.65 * small if both else 0)), size=size)
            if both:
                bounds = _interval(float(low[i, j]), float(high[i, j]))
                write(text=bounds, offset=(0, -0.55 * size), size=small)

    def number_sizes(self, place: Layout) -> tuple[float, float]:
        """Return the sizes of numbers and of intervals: the same in all cells of both parts."""
        border = self.border(place)
        width, height = 0.95 * place.width - 4 * border / 72, 0.95 * 72 * place.height - 2 * border
        table = self.panel.table.drop_nulls("effect")
        numbers = [number(value) for value in table["effect"]] or ["0"]
        size = min(NUMBER_SIZE * self.style.scale, width / max(map(self.width, numbers)), height)
        known = table.drop_nulls("ci_low")
        if not self.panel.at_most(DETAILED) or known.is_empty():
            return size, 0.0
        size = min(size, height / 2.3)
        intervals = (_interval(low, high) for low, high in known.select("ci_low", "ci_high").iter_rows())
        return size, min(0.75 * size, width / max(map(self.width, intervals)))


def _write(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    size: float,
    to: str = "axes fraction",
    **more: Any,
) -> None:
    """Write a text at a place of the axes (or of its data), moved by an offset in points."""
    options: dict[str, Any] = {"weight": "bold", "ha": "center", "annotation_clip": False} | more
    axes.annotate(text, at, offset, to, "offset points", fontsize=size, **options)


def number(value: float) -> str:
    """Return a signed number with a true minus sign and without a leading zero, to about three digits."""
    text = f"{value:+.2f}" if abs(value) < 9.995 else f"{value:+.1f}"
    text = text.replace("+0.", "+.").replace("-0.", "-.")
    return "0" if text in ("+.00", "-.00") else text.replace("-", "\u2212")


def _interval(low: float, high: float) -> str:
    return f"[{number(low)}, {number(high)}]"


def _readable_on(color: Any) -> str:
    """Return black or white, whichever has the larger contrast ratio (WCAG 2) to a background."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return "0.05" if np.dot((0.2126, 0.7152, 0.0722), channels) > 0.179 else "white"
