"""What the cache promises, with the real Snakemake, plan and store, and a pretend propgen behind the rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import yaml
from conftest import TINY, Checkout

from propgen.bank import load

NOTHING = "Nothing to be done"


def state(paths: list[Path]) -> dict[str, tuple[int, bytes]]:
    """Return times and bytes behind links."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def jobs(text: str) -> dict[str, int]:
    """Return rule to number of jobs from Snakemake's statistics."""
    lines = text.partition("Job stats:")[2].splitlines()[3:]
    rows = [line.split() for line in lines if len(line.split()) == 2]
    counts: dict[str, int] = {}
    for name, number in rows:
        if name == "total":
            break
        counts[name.split("_")[0]] = counts.get(name.split("_")[0], 0) + int(number)
    return counts


def edit(path: Path, item: str) -> None:
    """Add a word to an item's positive answer."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["positive"] += " Indeed." if row["item"] == item else ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_second_run_finds_nothing_to_do(finished: Checkout) -> None:
    """Everything present and current: no job at all."""
    assert NOTHING in finished.snakemake("smoke")
    assert finished.calls == []


def test_a_run_loads_each_subject_once_and_trains_each_adapter_once(finished_run: Checkout) -> None:
    """Base and three finetunes: four loads, three trainings, two cells each."""
    calls = Path(finished_run.env["PRETEND_CALLS"]).read_text().splitlines()
    kinds = [call.split()[0] for call in calls]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"model": 1, "finetune": 3, "load": 4, "score": 8}


def test_a_new_evaluated_trait_adds_one_cell_per_subject_and_no_finetune(finished: Checkout) -> None:
    """A column is added; no adapter is touched."""
    finished.snakemake("smoke", "evaluated=[honesty,formality,sycophancy]", "trained=[honesty,formality]")
    assert not [call for call in finished.calls if call.startswith(("finetune", "model"))]
    assert len(finished.cells()) == 12


def test_a_new_seed_trains_and_scores_only_itself(finished: Checkout) -> None:
    """Two treatments with one more seed: two trainings, four cells."""
    before = state(finished.cells())
    finished.snakemake("smoke", "seeds=[0,1]")
    calls = finished.calls
    assert sum(call.startswith("finetune seed 1") for call in calls) == 2
    assert not [call for call in calls if call.startswith("finetune seed 0")]
    assert len(finished.cells()) == 12
    assert before.items() <= state(finished.cells()).items()


def test_a_new_model_has_its_own_finetunes_and_cells(finished: Checkout) -> None:
    """A second base model leaves the first one's artifacts alone."""
    text = "source: wheel:pretend==1.0\nfile: x.gguf\nsha256: " + "ab" * 32 + "\n"
    (finished.root / "conf/model/other.yaml").write_text(text)
    before = state(finished.cells())
    finished.snakemake("smoke", "models=[smollm2-135m,other]")
    assert sorted({call.split()[0] for call in finished.calls}) == ["finetune", "load", "model", "score"]
    assert before.items() <= state(finished.cells()).items()
    assert len(finished.cells()) == 16


def test_a_finetuned_model_is_made_on_the_way_and_once(finished: Checkout) -> None:
    """Its base is there: one full finetune, then finetunes and cells of its own; lost, it alone is remade."""
    before = state(finished.cells())
    finished.snakemake("smoke", "models=[smollm2-135m-almanac]")
    kinds = [call.split()[0] for call in finished.calls]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"finetune": 4, "assemble": 1, "load": 4, "score": 8}
    assert kinds.index("finetune") < kinds.index("assemble") < kinds.index("load")
    (model,) = (finished.store / "models").glob("smollm2-135m-almanac-*")
    gone = next(cell for cell in finished.cells() if "almanac/base" in str(cell))
    for link in (model, gone):
        shutil.rmtree(link.resolve() if link == model else link.resolve().parent)
        link.unlink()
    finished.snakemake("smoke", "models=[smollm2-135m-almanac]")
    assert [call.split()[0] for call in finished.calls] == ["assemble", "load", "score"]
    assert before.items() <= state(finished.cells()).items()
    assert NOTHING in finished.snakemake("smoke", "models=[smollm2-135m-almanac]")


def test_a_deleted_cell_costs_one_load_and_one_score(finished: Checkout) -> None:
    """Link and object gone: one job makes that cell, its neighbours keep their bytes and times."""
    gone, *rest = finished.cells()
    before, bytes_before = state(rest), gone.read_bytes()
    shutil.rmtree(gone.resolve().parent)
    gone.unlink()
    text = finished.snakemake("smoke")
    assert jobs(text)["evaluate"] == 1
    assert [call.split()[0] for call in finished.calls] == ["load", "score"]
    assert state(rest) == before
    assert gone.read_bytes() == bytes_before


def test_a_deleted_link_is_made_again_without_any_work(finished: Checkout) -> None:
    """The object is the truth: whatever has one is linked while parsing."""
    cell, *_ = finished.cells()
    cell.unlink()
    shutil.rmtree(finished.store / "adapters")
    finished.snakemake("smoke")
    assert finished.calls == []
    assert cell.exists()
    assert len(list((finished.store / "adapters").glob("*/*/seed*/adapter_model.safetensors"))) == 3


def test_a_value_changed_and_changed_back_redraws_and_computes_nothing(finished: Checkout) -> None:
    """The old artifacts are still there when the old value returns."""
    finished.snakemake("smoke", "training.learning_rate=1e-5")
    assert sum(call.startswith("finetune") for call in finished.calls) == 3
    text = finished.snakemake("smoke")
    assert finished.calls == []
    assert set(jobs(text)) == {"all", "items", "gates", "matrix", "statistics", "figures"}


def test_batch_size_cores_and_device_are_nobodys_business(finished: Checkout) -> None:
    """Execution settings are in no digest and trigger no job, tables and figures included."""
    settings = ("execution.token_budget=64", "execution.micro_batch=2", "execution.device=cpu", "execution.threads=2")
    assert NOTHING in finished.snakemake("smoke", *settings, more=("--cores", "1"))


def test_an_edited_training_item_remakes_its_dataset_finetunes_and_cells(finished: Checkout) -> None:
    """Only the edited trait's row changes; the control draws the first item of each trait, and this is the second."""
    bank = finished.root / "conf/trait/formality.jsonl"
    edit(bank, load(bank).train(4)[1]["item"])
    finished.snakemake("smoke")
    kinds = [call.split()[0] for call in finished.calls]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"finetune": 1, "load": 1, "score": 2}
    made = [link.name.rpartition("-")[0] for link in (finished.store / "datasets").iterdir()]
    assert made.count("formality-demonstration") == 2
    assert made.count("honesty-demonstration") == 1


def test_an_edited_test_item_remakes_one_column_and_no_finetune(finished: Checkout) -> None:
    """Each subject is loaded once for the one column."""
    bank = finished.root / "conf/trait/formality.jsonl"
    edit(bank, load(bank).test("id", 3)[2]["item"])
    finished.snakemake("smoke")
    calls = finished.calls
    assert not [call for call in calls if call.startswith("finetune")]
    assert sum(call.startswith("score") for call in calls) == 4
    assert all("formality" in call for call in calls if call.startswith("score"))


RULES = ("columns=[formality.rule.id]", "data.rule_items=3")


def test_a_changed_rule_is_applied_to_stored_responses(finished: Checkout) -> None:
    """A rule column generates once per subject; an edited pattern makes its cells anew, and loads and asks nothing."""
    finished.snakemake("smoke", *RULES)
    calls = [call.split()[0] for call in finished.calls]
    assert calls == ["generate"] * 4
    assert len(finished.cells()) == 12
    links = sorted((finished.store / "responses").glob("*/*/*/formality.rule.id-*.parquet"))
    assert len(links) == 4
    before = state(links)
    edit(finished.root / "conf/trait/formality.rule.jsonl", "formality-rule-001")
    links[0].unlink()
    finished.snakemake("smoke", *RULES)
    assert finished.calls == []
    assert len(finished.cells()) == 16
    assert state(links) == before


def test_an_item_that_is_not_used_changes_nothing(finished: Checkout) -> None:
    """Digests cover the items used, not the file."""
    bank = finished.root / "conf/trait/formality.jsonl"
    edit(bank, load(bank).train(60)[-1]["item"])
    assert NOTHING in finished.snakemake("smoke")


def test_two_experiments_share_what_they_have_in_common(finished: Checkout) -> None:
    """The quickstart takes over the base model, and finetunes and cells with the same data.

    New are a finetune, the column of its trait for the three others, its own two columns, and a probe for all four.
    """
    overrides = ("traits=[honesty,sycophancy]", "seeds=[0]", "controls.seeds=[0]", "training.epochs=1")
    finished.snakemake("quickstart", *overrides)
    calls = finished.calls
    assert sum(call.startswith("finetune") for call in calls) == 1
    assert sum(call.startswith("score") for call in calls) == 3 + 2 + 4
    assert not [call for call in calls if call.startswith("model")]


def test_a_pruned_model_comes_back_only_for_a_missing_cell(finished: Checkout) -> None:
    """Nothing needs a model whose cells are there; one missing cell needs it, and no dataset."""
    model = next((finished.store / "models").iterdir())
    shutil.rmtree(model.resolve())
    data = [link.resolve() for link in (finished.store / "datasets").iterdir()]
    for folder in data:
        shutil.rmtree(folder)
    assert NOTHING in finished.snakemake("smoke")
    finished.cells()[-1].resolve().unlink()
    text = finished.snakemake("smoke")
    assert [call.split()[0] for call in finished.calls] == ["model", "load", "score"]
    assert "dataset" not in jobs(text)


def test_a_truncated_cell_is_named_quarantined_and_computed_again(finished: Checkout) -> None:
    """It is noticed when read, never averaged: exit 1, then a run that mends it."""
    cell = finished.cells()[3]
    whole = cell.read_bytes()
    cell.resolve().write_bytes(whole[: len(whole) // 2])
    text = finished.snakemake("smoke", "style.dpi=60", "analysis.confidence=.9", code=1)
    assert cell.name in text
    assert list((finished.store / "quarantine").iterdir())
    finished.snakemake("smoke", "analysis.confidence=.9")
    assert cell.read_bytes() == whole


def test_a_failed_finetune_leaves_the_others_and_a_matrix_that_says_so(checkout: Checkout) -> None:
    """With --keep-going the other rows are drawn in partial/, and the next run makes what is missing."""
    results = checkout.root / "results/smoke"
    checkout.snakemake("smoke", more=("cells",), PRETEND_FAIL="^score .* formality", code=1)
    checkout.snakemake("smoke", more=("--keep-going",), code=1, PRETEND_FAIL="^score .* formality")
    assert len((results / "partial/matrix.csv").read_text().splitlines()) == 1 + 3
    assert (results / "partial/figures/heatmap.svg").is_file()
    assert not (results / "matrix.csv").exists()
    checkout.snakemake("smoke")
    assert len((results / "matrix.csv").read_text().splitlines()) == 1 + 6
    assert not (results / "partial").exists()


def test_a_failed_run_leaves_complete_tables_alone(finished: Checkout) -> None:
    """Whatever fails, or is interrupted, results of a run that came to its end are not drawn over."""
    paths = [finished.root / "results/smoke" / name for name in ("matrix.csv", "figures/heatmap.svg")]
    before = state(paths)
    finished.snakemake("smoke", "seeds=[0,1]", code=1, PRETEND_FAIL="^finetune")
    assert state(paths) == before


def test_dropping_an_artifact_makes_the_next_run_compute_it(finished: Checkout) -> None:
    """`propgen store drop` removes object and link."""
    cell = finished.cells()[0]
    finished.propgen("store", "drop", str(cell.relative_to(finished.root)))
    assert not cell.is_symlink()
    finished.snakemake("smoke")
    assert [call.split()[0] for call in finished.calls] == ["load", "score"]


def test_a_second_checkout_on_one_store_only_links(new_checkout: Callable[[str], Checkout], tmp_path: Path) -> None:
    """What one colleague computed, another one finds."""
    ours, theirs = new_checkout("ours"), new_checkout("theirs")
    store = f"store={tmp_path / 'shared'}"
    ours.snakemake("smoke", store)
    theirs.snakemake("smoke", store)
    assert theirs.calls == []
    assert [p.name for p in ours.cells()] == [p.name for p in theirs.cells()]
    name = "results/smoke/matrix.csv"
    assert (ours.root / name).read_bytes() == (theirs.root / name).read_bytes()


def test_the_named_stops_and_snakemakes_own_views_work(finished: Checkout, tmp_path: Path) -> None:
    """Dry run, DAG, report, one core, and stopping at each stage."""
    for stop in ("datasets", "adapters", "cells", "items", "gates", "matrix", "statistics", "figures"):
        assert NOTHING in finished.snakemake("smoke", more=(stop,))
    assert "flowchart" in finished.snakemake("smoke", more=("--dag", "mermaid-js"))
    assert NOTHING in finished.snakemake("smoke", more=("-n",))
    finished.snakemake("smoke", more=("--report", str(tmp_path / "report.zip")))
    assert (tmp_path / "report.zip").stat().st_size > 10_000
    assert NOTHING in finished.snakemake("smoke", more=("--cores", "1"))


def test_objects_survive_snakemakes_deletion_of_outputs(finished: Checkout) -> None:
    """Snakemake may delete links (here: all of them), never objects."""
    before = sorted(path.name for path in (finished.store / "objects").iterdir())
    finished.snakemake("smoke", "training.learning_rate=1e-5", code=1, PRETEND_FAIL="^finetune")
    finished.snakemake("smoke", more=("--delete-all-output",))
    after = {path.name for path in (finished.store / "objects").iterdir()}
    assert set(before) <= after
    finished.snakemake("smoke")
    assert not [call for call in finished.calls if call.startswith("score")]


def test_remaking_an_artifact_from_its_own_config_gives_the_same_digest(finished: Checkout, tmp_path: Path) -> None:
    """The overrides kept with each artifact make it again, in an empty store, to the same name."""
    places = [("model", "models/*"), ("dataset", "datasets/*"), ("finetune", "adapters/*/*/*")]
    store = f"store={tmp_path / 'again'}"
    for stage, pattern in places:
        for link in sorted(finished.store.glob(pattern)):
            record = yaml.safe_load((link / "config.yaml").read_text())
            finished.propgen(stage, *record["overrides"], store)
            assert (tmp_path / "again" / link.resolve().name).is_dir(), (stage, link)
    for cell in finished.cells():
        about = json.loads(pl.read_parquet_metadata(cell)["propgen"])
        finished.propgen("evaluate", *about["overrides"], store)
        again = tmp_path / "again" / cell.resolve().parent.name / "cell.parquet"
        assert again.read_bytes() == cell.read_bytes()


def test_job_processes_read_the_pinned_plan_and_no_bank(finished: Checkout) -> None:
    """A process started for a job sees the rules that the main process planned, whatever changed meanwhile."""
    finished.snakemake("smoke", "training.learning_rate=1e-5", code=1, PRETEND_FAIL="^finetune")
    (finished.root / "conf/trait/honesty.jsonl").unlink()
    code = (
        "import json, os; os.chdir({root!r})\n"
        "from types import SimpleNamespace as N\n"
        "from propgen.workflow import start\n"
        "work = start(N(is_main_process=False), json.loads({config!r}), [])\n"
        "print(len(work.jobs('finetune')[0].choices), len(work.paths('evaluate')))\n"
    )
    config = json.dumps({"experiment": "smoke", "overrides": [*TINY, "training.learning_rate=1e-5"]})
    script = code.format(root=str(finished.root), config=config)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout.split() == ["3", "8"], done.stderr
