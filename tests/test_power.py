"""Power: what designs promise, against the field's check figures, simulation, and components that are known."""

from __future__ import annotations

import numpy as np
import pytest

from propgen import power
from propgen.power import DEFAULTS, Components, Design, error, measured, smallest
from propgen.simulator import World, draw

pytestmark = pytest.mark.filterwarnings("error")


def test_the_check_figures() -> None:
    """200 items, 5 + 8 seeds: about 5.5 points uncorrected and 9.3 at .05/132; 64 items, 3 + 8: 7.5 and 12.8."""
    assert smallest(DEFAULTS, Design(5, 8, 200)) == pytest.approx(5.5, rel=0.05)
    assert smallest(DEFAULTS, Design(5, 8, 200), 0.05 / 132) == pytest.approx(9.3, rel=0.07)
    assert smallest(DEFAULTS, Design(3, 8, 64)) == pytest.approx(7.5, rel=0.1)
    assert smallest(DEFAULTS, Design(3, 8, 64), 0.05 / 132) == pytest.approx(12.8, rel=0.25)  # lent df vary


@pytest.mark.parametrize("design", [Design(1, 4, 64), Design(3, 1, 64), Design(3, 8, 1)])
def test_without_a_test_there_is_no_power(design: Design) -> None:
    assert smallest(DEFAULTS, design) is None
    assert power.power(error(DEFAULTS, design), 50.0) == 0.0


def test_more_of_anything_finds_smaller_effects() -> None:
    few = smallest(DEFAULTS, Design(3, 4, 64))
    for design in (Design(5, 4, 64), Design(3, 8, 64), Design(3, 4, 200)):
        assert smallest(DEFAULTS, design) < few  # type: ignore[operator]
    assert smallest(DEFAULTS, Design(3, 4, 64), 0.001) > few  # type: ignore[operator]


def test_components_are_found_again() -> None:
    """Analysis of variance on a large simulated table; what is estimated is what was put in."""
    sheet, _ = draw(World(treated=6, controls=12, items=300, traits=16), np.random.default_rng(0))
    found = measured(sheet)
    assert found is not None
    assert (found.seed, found.control) == pytest.approx((3.0, 3.0), rel=0.2)
    assert found.interaction == pytest.approx(10.0, rel=0.06)
    assert found.residual == pytest.approx(12.0, rel=0.03)


def test_one_seed_measures_nothing() -> None:
    sheet, _ = draw(World(treated=1, controls=1), np.random.default_rng(0))
    assert measured(sheet) is None


def test_a_table_has_every_design_and_says_of_how_many_cells() -> None:
    sheet, _ = draw(World(), np.random.default_rng(0))
    table = power.tabulate([sheet], 0.05)
    assert table.height == len(power.SEEDS) * len(power.CONTROLS) * len(power.ITEMS)
    assert table["n_cells"].unique().to_list() == [132]
    tested = table.drop_nulls("mde")
    assert (tested["mde_corrected"] > tested["mde"]).all()
    assert table.filter(n_seeds=1)["mde"].null_count() == 9
    assert power.tabulate([], 0.05).is_empty()


def test_measured_borrowing_counts() -> None:
    """With nothing lent a test of two seeds has one degree of freedom, and finds next to nothing."""
    alone = Components(3.0, 3.0, 10.0, 12.0, (0.0, 0.0))
    assert smallest(alone, Design(2, 8, 64)) > 3 * smallest(DEFAULTS, Design(2, 8, 64))  # type: ignore[operator]
