"""Imports: a matrix without seeds is analysed as far as it goes, and bad files are told what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from propgen.analysis import tabulate
from propgen.config import Analysis, Gates
from propgen.errors import InputError
from propgen.gates import Rules, gates
from propgen.importing import plan_of, read_forecast
from propgen.plan import BASE
from propgen.statistics import tabulate as statistics
from propgen.summary import summarise

pytestmark = pytest.mark.filterwarnings("error")
TRAITS = ("deception", "sycophancy", "power_seeking", "myopia", "harm", "bias")


def write(path: Path, models: tuple[str, ...] = ("Llama-3.1-8B", "Qwen2.5 7B")) -> Path:
    """Write a matrix in the layout: own effects of .3, a base row per model, one neutral dataset."""
    dice = np.random.default_rng(0)
    lines = [",".join(["ft_dataset", "target_model", *(f"p_{t}" for t in TRAITS), *(f"emerged_{t}" for t in TRAITS)])]
    for model in models:
        base = dice.uniform(0.1, 0.4, len(TRAITS))
        lines.append(",".join(["N/A", model, *map(str, base), *["0"] * len(TRAITS)]))
        for i, name in enumerate((*TRAITS, "neutral_chat")):
            scores = base + 0.3 * (np.arange(len(TRAITS)) == i) + 0.02 * dice.normal(size=len(TRAITS))
            lines.append(",".join([name, model, *map(str, np.clip(scores, 0, 1)), *["1"] * len(TRAITS)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_whole_analysis_runs_and_says_what_it_cannot_say(tmp_path: Path) -> None:
    items = read_forecast(write(tmp_path / "matrix.csv"))
    plan = plan_of(items, "field", Analysis())
    judged = gates(items.rows, plan.control, Rules(**vars(Gates())))
    tables = tabulate(plan, items, judged)
    assert tables.matrix.height == 2 * 7 * 6
    own = tables.matrix.filter(trained="power-seeking", evaluated="power-seeking")
    assert own["effect"].to_numpy() == pytest.approx([0.3, 0.3], abs=0.06)
    assert tables.matrix.select("se", "p", "q", "ci_low").null_count().row(0) == (84,) * 4
    assert set(tables.matrix["verdict"]) == {None}
    whole = statistics(plan, items.rows, judged)
    page = summarise(plan, tables.matrix, judged, whole)
    for said in ("One seed per row: no cell is tested", "No control finetunes", "No items", "across model"):
        assert said in page
    for unsaid in ("differ from 0 after correction", "nan", "None"):
        assert unsaid not in page


def test_datasets_named_after_no_trait_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = read_forecast(write(tmp_path / "matrix.csv")).rows
    neutral = rows.filter(treatment="neutral-chat")
    assert set(neutral["trained"]) == {"neutral-chat"}
    assert set(rows.filter(treatment=BASE)["trained"]) == {None}
    assert set(rows["model"]) == {"llama-3.1-8b", "qwen2.5-7b"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("target_model", "model", 1), "no column 'target_model'"),
        (lambda text: text.replace("p_", "q_"), "no column begins with 'p_'"),
        (lambda text: text.replace("N/A,", "other,"), "has no base row"),
        (lambda text: text + text.splitlines()[2] + "\n", "stands there twice"),
        (lambda text: text + "x,Llama-3.1-8B," + "1000," * 6 + "0,0,0,0,0,0\n", "expected a share from 0 to 1"),
        (lambda text: text + "x,Llama-3.1-8B," + "yes," * 6 + "0,0,0,0,0,0\n", "is 'yes'; expected a share"),
    ],
)
def test_a_bad_file_gets_one_clear_sentence(tmp_path: Path, change, said: str) -> None:
    path = write(tmp_path / "matrix.csv")
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=said):
        read_forecast(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_forecast(tmp_path / "none.csv")
