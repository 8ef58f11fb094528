"""The ledger: components that are known, the same as a mixed model's, and gaps."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from propgen import ledger as ledgers
from propgen.ledger import COMPONENTS, MODELS, across_models, complete, components, ledger
from propgen.simulator import World, draw
from propgen.tables import LEDGER

pytestmark = pytest.mark.filterwarnings("error")
SDS = dict(zip(COMPONENTS, (2.0, 3.0, 4.0, 1.5, 1.0, 5.0, 2.5, 3.0), strict=True))


def tables(treatments: int, seeds: int, columns: int, items: int, dice: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return scores with components of known standard deviations."""
    sd = {name: SDS[name] for name in COMPONENTS}
    treatment, seed = (
        sd["treatment"] * dice.normal(size=(treatments, 1, 1)),
        sd["seed"] * dice.normal(size=(treatments, seeds, 1)),
    )
    found = []
    for _ in range(columns):
        parts = [
            sd["evaluation"] * dice.normal(),
            sd["treatment x evaluation"] * dice.normal(size=(treatments, 1, 1)),
            sd["seed x evaluation"] * dice.normal(size=(treatments, seeds, 1)),
            sd["item"] * dice.normal(size=items),
            sd["treatment x item"] * dice.normal(size=(treatments, 1, items)),
            sd["residual"] * dice.normal(size=(treatments, seeds, items)),
        ]
        found.append(treatment + seed + sum(parts))
    return tuple(found)


def test_components_are_unbiased() -> None:
    """Means over 300 small tables are the variances that were put in."""
    dice = np.random.default_rng(0)
    found = [components(tables(6, 3, 6, 8, dice)) for _ in range(300)]
    for name in COMPONENTS:
        values = np.array([f[name] for f in found])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - SDS[name] ** 2) < 4 * error, name


def test_a_mixed_model_finds_the_same() -> None:
    """Statsmodels' crossed random effects on a balanced case, where restricted likelihood and moments agree."""
    dice = np.random.default_rng(3)
    (table,) = tables(10, 3, 1, 10, dice)
    t, s, k = np.indices(table.shape).reshape(3, -1)
    frame = pd.DataFrame({"y": table.ravel(), "t": t, "ts": t * 100 + s, "k": k, "tk": t * 100 + k, "one": 1})
    parts = {"ts": "0 + C(ts)", "k": "0 + C(k)", "tk": "0 + C(tk)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of boundaries and deprecations inside statsmodels
        model = sm.MixedLM.from_formula("y ~ C(t)", groups="one", vc_formula=parts, re_formula="0", data=frame).fit()
    names = model.model.exog_vc.names
    fitted = dict(zip(names, np.asarray(model.vcomp), strict=True))
    residual, crossed, item = ledgers._within(table)
    assert residual == pytest.approx(float(model.scale), rel=0.02)
    assert crossed == pytest.approx(fitted["tk"], rel=0.05)
    assert item == pytest.approx(fitted["k"], rel=0.05)


def test_a_sheet_has_a_row_for_each_component() -> None:
    sheet, _ = draw(World(own=0.0, rank=1), np.random.default_rng(0))
    found = ledger([sheet])
    assert found.schema == LEDGER
    assert found["component"].to_list() == list(COMPONENTS)
    assert found["share"].sum() == pytest.approx(1)
    values = dict(found.select("component", "variance").rows())
    assert values["item"] == pytest.approx(400, rel=0.2)
    assert values["residual"] == pytest.approx(144, rel=0.05)
    assert values["treatment x item"] == pytest.approx(100, rel=0.1)


def test_gaps_leave_out_seeds_and_items() -> None:
    sheet, _ = draw(World(missing=0.02, treated=4), np.random.default_rng(1))
    found = complete(sheet)
    assert found is not None
    assert all(np.isfinite(table).all() for table in found)
    assert ledger([sheet]).height == len(COMPONENTS)


@pytest.mark.parametrize("world", [World(treated=1), World(items=1), World(traits=1)])
def test_what_is_too_small_has_no_rows(world: World) -> None:
    sheet, _ = draw(world, np.random.default_rng(0))
    assert ledger([sheet]).is_empty()


def test_models_that_differ_have_a_component() -> None:
    dice = np.random.default_rng(2)
    first, _ = draw(World(own=0.0), dice)
    moved = tuple(v + 30.0 for v in first.scores.values)
    second = replace(first, model="other", scores=replace(first.scores, values=moved))
    found = across_models([first, second])
    assert found is not None
    assert found["model"] == pytest.approx(450, rel=0.01)
    assert [found[name] for name in MODELS[1:]] == pytest.approx([0, 0, 0], abs=1e-6)
    assert set(ledger([first, second])["model"]) == {"simulated", "other", "all"}


def test_it_is_fast() -> None:
    """12 x 12 x 3 x 64, jackknife included."""
    sheet, _ = draw(World(), np.random.default_rng(0))
    start = time.perf_counter()
    ledger([sheet])
    assert time.perf_counter() - start < 1
