"""Figures: nothing collides or is cut at any size, marks are where they belong, and a caption tells the whole."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.style import context
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from synthetic import make_matrix, make_plan, write_matrix

from propgen.config import Style
from propgen.errors import InputError, PropgenError
from propgen.figures import caption, draw, make_panel, read_matrix, settings
from propgen.heatmap import COLUMNS, ROWS, STRIP, Panel, heatmap, number
from propgen.plan import Plan

pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning"),
    pytest.mark.filterwarnings("ignore:The set_bad function"),  # of seaborn
]
TRAITS = ("honesty", "sycophancy", "risk-seeking", "formality", "agreeableness", "power-seeking", "self-preservation")
TRAITS += (
    "corrigibility",
    "conscientiousness",
    "ends-justify-means",
    "deference-to-authority",
    "emotional-expressiveness",
)
ABOUT = {"missing": [], "execution": ["transformers float32 cpu"]}
BOTH = ("control-shuffled", "control-benign")


@dataclass(frozen=True)
class Case:
    """What is drawn: names, share of missing rows, style, and the least size of labels in points."""

    trained: Sequence[str]
    evaluated: Sequence[str] | None = None
    missing: float = 0.0
    alone: bool = False
    controls: Sequence[str] = BOTH
    model: str = "smollm2-135m"
    style: Style = field(default_factory=Style)
    least: float = 15.0

    def plan(self) -> Plan:
        """Return the plan of one panel."""
        return make_plan(self.trained, self.evaluated, models=(self.model,), controls=self.controls, items=32)

    def panel(self) -> Panel:
        """Return the panel of an invented matrix."""
        plan = self.plan()
        return make_panel(plan, make_matrix(plan, missing=self.missing, alone=self.alone), self.model, "contrast", "id")


def names(count: int) -> list[str]:
    """Return that many trait names, some of them long."""
    return [f"{TRAITS[i % 12]}{'' if i < 12 else -(i // 12)}" for i in range(count)]


CASES = {
    "1x1": Case(names(1), controls=BOTH[:1]),
    "4x4": Case(names(4), controls=BOTH[:1]),
    "6x6": Case(names(6), least=13),
    "12x12": Case(names(12), missing=0.1, least=11),
    "40x40": Case(names(40), missing=0.03, least=5.5),
    "one row": Case(names(1), names(10)),
    "one column": Case(names(9), names(1)),
    "3 rows, 25 columns": Case(names(3), names(25), missing=0.2, least=12),
    "all missing": Case(names(4), missing=1.1),
    "one seed": Case(names(4), alone=True),
    "very long names": Case(
        [f"{name}-in-{'very-' * 8}long-conversations" for name in names(5)], model="m" * 150, least=7.9
    ),
    "long columns": Case(["wit"], [f"{name}-under-pressure" for name in names(9)[::-1]], controls=("c",), least=13),
    "large text": Case(names(8), style=Style(scale=1.4), least=12),
    "small page": Case(names(5), style=Style(width=7, height=5), least=6),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def figure(case: Case) -> Figure:
    """Return the figure of a case, drawn once for all tests."""
    with context(["default", settings(case.style)]):
        panel = case.panel()
        figure = heatmap(panel, caption(case.plan(), panel, ABOUT | {"missing": ["a cell"] * 7}), case.style)
        figure.draw_without_rendering()
        return figure


def texts(figure: Figure) -> list[Text]:
    """Return all texts that are seen."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def grids(figure: Figure) -> tuple[Axes, Axes]:
    """Return the axes of the treatments and of the controls."""
    upper, lower = figure.axes[:2]
    return upper, lower


def overlap(one: Bbox, other: Bbox) -> float:
    """Return by how many pixels two boxes overlap in the direction in which they do so least."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    return min(width, min(one.y1, other.y1) - max(one.y0, other.y0))


# -- layout --------------------------------------------------------------------------------------------------------


def test_nothing_is_cut_and_nothing_collides(figure: Figure, case: Case) -> None:
    """Every text lies within the figure, no two flat texts overlap, and slanted labels keep their distance."""
    page = Bbox.from_bounds(0, 0, *(figure.get_size_inches() * figure.dpi))
    boxes = {text: text.get_window_extent() for text in texts(figure)}
    for text, box in boxes.items():
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    flat = [box for text, box in boxes.items() if text.get_rotation() in (0, 90)]
    if len(flat) < 400:
        assert max(overlap(*pair) for pair in combinations(flat, 2)) <= 1
    slanted = [text for text in boxes if text.get_rotation() not in (0, 90)]
    for one, other in pairwise(slanted):
        apart = boxes[other].x1 - boxes[one].x1
        assert apart * math.sin(math.radians(one.get_rotation())) >= one.get_fontsize() * figure.dpi / 72
    below = min((boxes[text].y0 for text in slanted), default=math.inf)
    assert below >= next(box for text, box in boxes.items() if text.get_text() == COLUMNS).y1


def test_texts_stand_clear_of_the_cells(figure: Figure, case: Case) -> None:
    """Labels, headings, title, caption and scale stand outside the cells; numbers stand inside their own."""
    for grid in grids(figure):
        cells = grid.get_window_extent()
        for text in texts(figure):
            box = text.get_window_extent()
            inside = cells.x0 < (box.x0 + box.x1) / 2 < cells.x1 and cells.y0 < (box.y0 + box.y1) / 2 < cells.y1
            if not inside:
                assert text.get_rotation() not in (0, 90) or overlap(box, cells) <= 1, text
        width, height = cells.width / len(case.evaluated or case.trained), cells.height / len(grid.get_yticks())
        for text in texts(figure):
            if text.axes is grid and text.get_text()[0] in "[+\u22120":
                box = text.get_window_extent()
                assert box.width <= width
                assert int((box.x0 - cells.x0) / width) == int((box.x1 - cells.x0) / width)
                assert box.height <= 1.5 * height


def test_labels_are_large_enough(figure: Figure, case: Case) -> None:
    """The smallest label has the size that is asked of the case: for the back of a room where there is room."""
    upper, lower = grids(figure)
    assert min(text.get_fontsize() for text in (*upper.get_yticklabels(), *lower.get_xticklabels())) >= case.least


def test_the_controls_stand_apart(figure: Figure) -> None:
    """A gap of more than a line of text with a heading of its own is between treatments and controls."""
    upper, lower = (grid.get_window_extent() for grid in grids(figure))
    found = {text.get_text(): text.get_window_extent() for text in texts(figure)}
    assert upper.y0 - lower.y1 > found[STRIP].height
    assert lower.y1 <= found[STRIP].y0 < found[STRIP].y1 <= upper.y0
    assert found[ROWS].y0 >= upper.y1
    assert found[COLUMNS].y1 <= lower.y0
    assert (lower.x0, lower.x1) == (upper.x0, upper.x1)


# -- cells ---------------------------------------------------------------------------------------------------------


def patches(axes: Axes, hatched: bool) -> list[Rectangle]:
    """Return the hatched rectangles of a grid, or its borders."""
    return [p for p in axes.patches if isinstance(p, Rectangle) and bool(p.get_hatch()) == hatched]


def test_missing_cells_are_hatched_and_significant_ones_have_a_border(figure: Figure, case: Case) -> None:
    """Exactly these, in the right places; a border lies whole within its cell."""
    panel = case.panel()
    for axes, labels in zip(grids(figure), (panel.rows, panel.controls), strict=True):
        effects = panel.grid(labels, "effect")
        hatched = {(int(p.get_y()), int(p.get_x())) for p in patches(axes, hatched=True)}
        assert hatched == set(zip(*np.nonzero(np.isnan(effects)), strict=True))
        borders = patches(axes, hatched=False)
        marked = {(int(p.get_y()), int(p.get_x())) for p in borders}
        assert marked == set(zip(*np.nonzero(panel.survives(labels)), strict=True))
        for border in borders:
            assert border.get_linewidth() >= 0.6
            assert math.floor(border.get_x()) == math.floor(border.get_x() + border.get_width())
            assert math.floor(border.get_y()) == math.floor(border.get_y() + border.get_height())


def test_survival_is_by_q_off_the_diagonal_and_by_p_on_it_and_for_controls() -> None:
    """A small p without a small q is no survivor, and the level is that of the plan of analysis."""
    plan = make_plan(("honesty", "formality"))
    plan.analysis["alpha"] = 0.01
    p = {
        "honesty-demonstration": [0.001, 0.001],
        "formality-demonstration": [0.001, 0.02],
        "control-shuffled": [0.5, 0.001],
    }
    q = {
        "honesty-demonstration": [None, 0.02],
        "formality-demonstration": [0.002, None],
        "control-shuffled": [None, None],
    }
    matrix = make_matrix(plan)
    order = [(t, 0 if e.startswith("honesty") else 1) for t, e in matrix.select("treatment", "evaluation").iter_rows()]
    values = {"p": [p[t][j] for t, j in order], "q": [q[t][j] for t, j in order]}
    panel = make_panel(
        plan, matrix.with_columns(*(pl.Series(k, v, pl.Float64) for k, v in values.items())), "m", "contrast", "id"
    )
    assert panel.survives(panel.rows).tolist() == [[True, False], [True, False]]
    assert panel.survives(panel.controls).tolist() == [[False, True]]


def test_numbers_can_be_read_on_their_colour() -> None:
    """The contrast of every number with its cell is at least 4.5 (WCAG AA), from the palest to the darkest."""
    case = CASES["12x12"]
    with context(["default", settings(case.style)]):
        panel = case.panel()
        figure = heatmap(panel, "caption", case.style)
        upper, _ = grids(figure)
        colors = upper.collections[0].to_rgba(upper.collections[0].get_array()).reshape(12, 12, 4)
        for text in upper.texts:
            if text.get_text() != ROWS:
                x, y = text.xy  # type: ignore[attr-defined]
                assert contrast(text.get_color(), colors[int(y), int(x)]) >= 4.5


def contrast(*both: object) -> float:
    """Return the WCAG contrast ratio of two colours."""
    rgb = np.array([to_rgb(color) for color in both])  # type: ignore[arg-type]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return float((light + 0.05) / (dark + 0.05))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "+.50"),
        (-0.123, "\u2212.12"),
        (1.005, "+1.00"),
        (-12.34, "\u221212.3"),
        (0.004, "0"),
        (-0.004, "0"),
        (0, "0"),
    ],
)
def test_numbers_are_signed_and_short(value: float, text: str) -> None:
    """A true minus sign, no leading zero, about three digits, and no signed zero."""
    assert number(value) == text


def test_heatmaps_of_a_protocol_share_one_scale() -> None:
    """Else the same colour would mean different effects on two slides."""
    plan = make_plan(("honesty", "formality"), models=("m", "n"), views=[("contrast", "id"), ("choice", "id")])
    matrix = make_matrix(plan)
    limits = {
        view: make_panel(plan, matrix, *view).limit for _, *view in map(tuple, plan.panels) for view in [tuple(view)]
    }
    assert limits["m", "contrast", "id"] == limits["n", "contrast", "id"] != limits["m", "choice", "id"]
    assert limits["m", "contrast", "id"] > matrix.filter(protocol="contrast")["effect"].abs().max()


def test_rows_are_named_by_their_regime_where_they_differ_in_it() -> None:
    """The trait alone is enough while all rows share one regime, also when all of them are missing."""
    plan = make_plan(("honesty", "formality"))
    assert list(make_panel(plan, make_matrix(plan, missing=2), "m", "contrast", "id").rows.values()) == [
        "honesty",
        "formality",
    ]
    third = plan.treatments[-1].__class__("honesty-negated", "negated", "honesty")
    plan = Plan.from_json({**plan.as_json(), "treatments": [t.__dict__ for t in (*plan.treatments, third)]})
    rows = make_panel(plan, make_matrix(plan), "m", "contrast", "id").rows
    assert list(rows.values()) == ["honesty-demonstration", "formality-demonstration", "honesty-negated"]


# -- captions ------------------------------------------------------------------------------------------------------


def test_a_cell_without_a_number_is_explained() -> None:
    """It is hatched like a missing one, and the caption says that it is there and could not be scored."""
    plan = make_plan(("honesty", "formality"), views=[("rule", "id")])
    matrix = make_matrix(plan)
    hit = pl.col("treatment") == "honesty-demonstration"
    mute = matrix.with_columns(effect=pl.when(hit).then(None).otherwise(pl.col("effect")))
    said, unsaid = (caption(plan, make_panel(plan, m, "m", "rule", "id"), ABOUT) for m in (mute, matrix))
    assert "2 hatched cells have no number, since no answer of a finetune could be scored." in said
    assert "no number" not in unsaid
    heatmap(make_panel(plan, mute, "m", "rule", "id"), said, Style())


def caption_of(case: Case, **about: object) -> str:
    """Return a case's caption."""
    return caption(case.plan(), case.panel(), ABOUT | about)


def test_a_caption_tells_all_that_a_reader_needs() -> None:
    """Axes, unit, interval, n, control, marks with their level, power, and what stands at the bottom."""
    text = caption_of(CASES["4x4"])
    for part in (
        *("Rows: trait", "Columns: trait", "log-likelihood", "'id'", "nats per token", "(control-shuffled)"),
        *(
            "95 % t interval",
            "n: 32 items, 3 seeds per row, 4 control seeds",
            "Border",
            "p < .05",
            "80 % power",
            "Bottom",
        ),
    ):
        assert part in text
    assert "exploratory" not in text
    assert "missing" not in text
    assert "None" not in text


def test_a_caption_speaks_only_of_what_is_drawn() -> None:
    """No brackets in large matrices, no numbers in huge ones, no marks with one seed, no n without rows."""
    assert "Brackets" not in caption_of(CASES["12x12"])
    assert "Colour and number" in caption_of(CASES["12x12"])
    assert "Colour:" in caption_of(CASES["40x40"])
    alone = caption_of(CASES["one seed"])
    assert "No cell has a border" in alone
    assert "Brackets" not in alone
    assert "1 seed per row" in alone
    assert "fewer than 3 seeds per row" in alone
    assert not {"n:", "None", "border"} & set(caption_of(CASES["all missing"]).split())


def test_a_caption_warns_of_missing_cells_and_of_mixtures() -> None:
    """What was left out, and what was mixed, is never silent."""
    text = caption_of(
        CASES["4x4"], missing=["a", "b"], execution=["transformers bfloat16 cpu", "transformers float32 cpu"]
    )
    assert "2 cells of the experiment are missing" in text
    assert "Mixes engines or data types: transformers bfloat16 cpu; transformers float32 cpu." in text


# -- files ---------------------------------------------------------------------------------------------------------


def test_the_same_table_draws_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all formats, whatever the time and the user's own matplotlib settings; and no scratch remains."""
    plan = make_plan(("honesty",), views=[("contrast", "id"), ("choice", "far")])
    matrix, style = make_matrix(plan), Style(dpi=50)
    for name in ("one", "other"):
        write_matrix(tmp_path / name, plan, matrix)
        draw(plan, tmp_path / name, style)
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
        monkeypatch.setitem(matplotlib.rcParams, "axes.edgecolor", "red")
        monkeypatch.setitem(matplotlib.rcParams, "xtick.labelsize", 40)
    files = sorted((tmp_path / "one/figures").iterdir())
    kinds = ("heatmap", "comovement", "power", "ledger")
    stems = [f"{kind}{view}" for kind in kinds for view in ("", "-m-choice-far")]
    assert [file.name for file in files] == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf"))
    for file in files:
        assert file.read_bytes() == (tmp_path / "other/figures" / file.name).read_bytes(), file.name


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Dollar signs make no formula, underscores no subscript, and angle brackets no element of the SVG."""
    odd = ("a_b", "$x_1$", "<script>alert(1)</script>", "50 % & $")
    plan = make_plan(odd, models=("m_$1$<script>",))
    write_matrix(tmp_path, plan, make_matrix(plan))
    draw(plan, tmp_path, Style(dpi=50, formats=["svg"]))
    text = (tmp_path / "figures/heatmap.svg").read_text()
    assert not [element for element in ElementTree.fromstring(text).iter() if "script" in element.tag.lower()]
    panel = make_panel(plan, make_matrix(plan), "m_$1$<script>", "contrast", "id")
    with context(["default", settings(Style())]):
        figure = heatmap(panel, caption(plan, panel, ABOUT), Style())
        assert set(odd) <= {text.get_text() for text in texts(figure)}
        assert not any(text.get_parse_math() for text in texts(figure))


def test_brackets_in_a_folder_are_no_pattern(tmp_path: Path) -> None:
    """A checkout in `runs[1]` draws its own figures."""
    plan = make_plan(("honesty",))
    write_matrix(tmp_path / "runs[1]", plan, make_matrix(plan))
    assert read_matrix(tmp_path / "runs[1]/matrix.parquet")[0].height == 2


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "other columns"])
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    """An error says which file it is and what to do, and nothing is drawn."""
    plan = make_plan(("honesty",))
    path = tmp_path / "matrix.parquet"
    if damage == "other columns":
        write_matrix(tmp_path, plan, make_matrix(plan).drop("mde"))
    elif damage == "foreign":
        pl.DataFrame({"a": [1]}).write_parquet(path)
    elif damage == "truncated":
        write_matrix(tmp_path, plan, make_matrix(plan))
        os.truncate(path, 100)
    with pytest.raises(PropgenError, match=str(path)):
        draw(plan, tmp_path, Style())
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("style", [Style(formats=["png", "jpg"]), Style(palette="vlagg")])
def test_an_unknown_format_or_palette_is_bad_input(tmp_path: Path, style: Style) -> None:
    """It is refused before anything is drawn, with what is known."""
    plan = make_plan(("honesty",))
    write_matrix(tmp_path, plan, make_matrix(plan))
    with pytest.raises(InputError, match=r"jpg.*png, svg, pdf|vlagg.*'vlag'"):
        draw(plan, tmp_path, style)
    assert not (tmp_path / "figures").exists()


def test_rows_trained_on_different_sets_of_a_trait_are_told_apart() -> None:
    """Two rows of one trait show which training set they are."""
    plan = make_plan(("honesty",))
    twin = replace(plan.treatments[-1], name="honesty-demonstration-hard", variant="hard")
    panel = make_panel(replace(plan, treatments=(*plan.treatments, twin)), make_matrix(plan), "m", "contrast", "id")
    assert list(panel.rows.values()) == ["honesty", "honesty.hard"]
