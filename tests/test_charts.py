"""Charts: drawn from real statistics, texts inside the page and apart, and an honest page where there is nothing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from propgen import charts, pattern, power
from propgen.config import Style
from propgen.ledger import ledger
from propgen.simulator import World, draw
from propgen.tables import COMOVEMENT, LEDGER, LOADINGS

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
TITLE = "model  \u00b7  choice  \u00b7  id"


def drawn(traits: int = 12, style: Style | None = None) -> dict[str, Figure]:
    """Return every chart of a simulated view."""
    style = style or Style()
    sheet, _ = draw(World(traits=traits, rank=1), np.random.default_rng(0))
    tables = pattern.tabulate([sheet], 0.95, {})
    found = {
        "power": charts.power(power.tabulate([sheet], 0.05), "points", TITLE, style),
        "ledger": charts.ledger(ledger([sheet]), TITLE, style),
        "comovement": charts.comovement(tables["comovement"], tables["loadings"], TITLE, style),
    }
    for figure in found.values():
        FigureCanvasAgg(figure).draw()
    return found


def texts(figure: Figure) -> list[Text]:
    """Return what is written, ticks included, and is not blank."""
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("style", [Style(), Style(width=6.5, height=4.5), Style(scale=1.2)])
def test_every_text_is_on_the_page(style: Style) -> None:
    for name, figure in drawn(style=style).items():
        box = figure.bbox
        for text in texts(figure):
            extent = text.get_window_extent()
            inside = extent.x0 >= -1 and extent.y0 >= -1 and extent.x1 <= box.x1 + 1 and extent.y1 <= box.y1 + 1
            assert inside, (name, text.get_text())


def test_title_caption_and_labels_do_not_touch() -> None:
    for name, figure in drawn().items():
        apart = [text.get_window_extent() for text in figure.texts]
        labels = [
            text.get_window_extent() for axis in figure.axes for text in axis.get_xticklabels() if text.get_text()
        ]
        assert not any(a.overlaps(b) for a, b in combinations(apart, 2)), name
        assert not any(a.overlaps(b) for a in apart for b in labels), name


def test_captions_say_what_a_chart_cannot_show() -> None:
    found = {name: " ".join(text.get_text() for text in figure.texts) for name, figure in drawn().items()}
    assert "With one seed there is no test" in found["power"].replace("\n", " ")
    assert "nothing of what training one trait does" in found["comovement"].replace("\n", " ")
    assert "interval" in found["ledger"]


def test_without_data_a_chart_says_so() -> None:
    empty = {
        "one seed": charts.power(pl.DataFrame(schema=power.POWERS), "points", TITLE, Style()),
        "Too few complete": charts.ledger(pl.DataFrame(schema=LEDGER), TITLE, Style()),
        "Too few finetunes": charts.comovement(
            pl.DataFrame(schema=COMOVEMENT), pl.DataFrame(schema=LOADINGS), TITLE, Style()
        ),
    }
    for said, figure in empty.items():
        FigureCanvasAgg(figure).draw()
        assert any(said in text.get_text() for text in texts(figure)), said


def test_many_traits_are_drawn_without_numbers() -> None:
    figure = drawn(traits=20)["comovement"]
    assert not [text for text in figure.axes[0].texts if text.get_text()]
