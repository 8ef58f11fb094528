"""Layout: where a heatmap's cells stand, so that every label has room. Arithmetic alone, nothing is drawn here.

Places and widths are in inches, from the figure's lower left corner; sizes of text are in points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from propgen.config import Style

LABEL_SIZE, SMALLEST_FLAT, SMALLEST_HEADING = 16.0, 11.0, 10.0
"""Labels are at most so large, shrink so far before those of columns are slanted, and headings no further than this."""
SHRINK = 0.96
"""One step of shrinking, of which there are `STEPS`."""
STEPS = 60
MARGIN, PAD = 0.3, 0.12
"""Blank border of the figure, and space between its parts."""
LINE, CLOSE = 1.3, 1.08
"""Height of a line of text, and the least distance of labels, in sizes of their font."""
SHARE, SMALL = 0.4, 8.0
"""Cells take at least this share of the height, unless labels would have to be smaller than that."""
LARGEST = (3.0, 1.2)
"""Width and height beyond which the cells of a small matrix do not grow."""
ANGLE = math.radians(30)
"""Of column labels that have no room to lie flat."""
SCALE_GAP, SCALE_WIDTH, SCALE_LABELS = 0.3, 0.22, 1.1
"""The colour scale: its distance from the cells, its width, and the width of its ticks and label."""


class Labels(NamedTuple):
    """Widths of labels per point of their size. rows, columns: of each. heading: of the widest heading of rows."""

    rows: Sequence[float]
    columns: Sequence[float]
    heading: float


class Layout(NamedTuple):
    """Left and upper edge of the cells, a cell's width and height, and the gap above the controls.

    label, heading: sizes. flat: whether the columns' labels lie flat. below: height that these take. fits: whether no
    label touches the next one, and enough is left to the cells.
    """

    left: float
    top: float
    width: float
    height: float
    gap: float
    label: float
    heading: float
    flat: bool
    below: float
    fits: bool


def lay_out(labels: Labels, style: Style, ceiling: float, floor: float) -> Layout:
    """Return the layout with the largest labels that have room between two heights; the smallest if none have."""
    sizes = [LABEL_SIZE * style.scale * SHRINK**step for step in range(STEPS)]
    tries = [(size, True) for size in sizes if size >= SMALLEST_FLAT * style.scale] + [(size, False) for size in sizes]
    places = [_try(labels, style, size, flat, ceiling - floor, ceiling) for size, flat in tries]
    return next((place for place in places if place.fits), places[-1])


def _try(labels: Labels, style: Style, size: float, flat: bool, room: float, ceiling: float) -> Layout:
    """Lay the cells out with labels of a size, those of the columns flat or slanted."""
    rows, heading = len(labels.rows), max(size, SMALLEST_HEADING * style.scale)
    label, line = size * LINE / 72, heading * LINE / 72
    longest = max(labels.columns) * size
    below = PAD + label + (0 if flat else longest * math.sin(ANGLE))
    gap = line + 2 * PAD
    free = room - 2 * line - gap - below
    height = min(free / rows, LARGEST[1])
    left, width = _across(labels, style, size, heading, flat)
    needed = longest / 0.94 if flat else CLOSE * size / 72 / math.sin(ANGLE)
    roomy = height * rows >= SHARE * room or height >= LARGEST[1] or size <= SMALL * style.scale
    fits = roomy and height >= CLOSE * size / 72 and width >= needed
    top = ceiling - line - (free - height * rows) / 2
    return Layout(left, top, width, height, gap, size, heading, flat, below, fits)


def _across(labels: Labels, style: Style, size: float, heading: float, flat: bool) -> tuple[float, float]:
    """Return the left edge and the width of a cell; the whole, with row labels and colour scale, is centred."""
    columns = len(labels.columns)
    room = style.width - 2 * MARGIN - SCALE_GAP - SCALE_WIDTH - SCALE_LABELS * style.scale
    before = PAD + max(max(labels.rows) * size, labels.heading * heading)
    width = min((room - before) / columns, LARGEST[0])
    if not flat:  # slanted labels hang over to the left
        overhangs = (w * size * math.cos(ANGLE) - (j + 0.5) * width for j, w in enumerate(labels.columns))
        before = max(before, PAD + max(overhangs))
        width = min((room - before) / columns, LARGEST[0])
    return MARGIN + before + (room - before - width * columns) / 2, width
