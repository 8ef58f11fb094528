"""Composing configs: every experiment, elements alone and as a stage's choice, and what planning may import."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, copy_project
from planning import REAL, add_trait, digests, planned, planner

from propgen import cli, stage
from propgen.compose import Project, compose, find_project
from propgen.config import Config, Training
from propgen.errors import InputError
from propgen.planner import Planner

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
CHOICE = ("model=smollm2-135m", "trait=honesty", "regime=demonstration", "seed=0")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_plans(name: str) -> None:
    """What is in conf/experiment/ runs as it is: traits have banks, models have sources, lists fit together."""
    plan = Planner(REAL, compose(REAL, [f"experiment={name}"])).plan()
    assert plan.experiment == name
    assert len(list(plan.cells)) == len(plan.subjects) * len(plan.evaluations) > 0


def test_the_default_is_the_quickstart() -> None:
    """No override at all composes the main job."""
    composition = compose(REAL, [])
    assert composition.chosen == {"experiment": "quickstart"}
    assert composition.config.name == "quickstart"


def test_lists_that_follow_traits_follow_an_override() -> None:
    """Rows and columns are `${traits}` until they are set themselves."""
    config = compose(REAL, ["experiment=smoke", "traits=[sycophancy]", "evaluated=[honesty]"]).config
    assert (config.trained, config.evaluated) == (["sycophancy"], ["honesty"])


def test_a_group_option_and_a_key_of_it_can_both_be_set() -> None:
    """A key wins over the option that is chosen beside it, in any order."""
    config = compose(REAL, ["training.epochs=7", "training=full"]).config
    assert (config.training.method, config.training.epochs) == ("full", 7)


def test_what_no_yaml_sets_has_the_schema_default() -> None:
    """Defaults live in the schema alone."""
    config = compose(REAL, []).config
    assert isinstance(config, Config)
    assert config.training.clip == Training().clip


def test_a_stage_choice_has_the_digests_of_the_whole_plan() -> None:
    """A job that is started with its own choice makes exactly what the main process planned."""
    whole = digests(planned())
    one = planner(REAL, *CHOICE)
    treatment = one.treatment("demonstration", "honesty")
    subject = one.subject("smollm2-135m", treatment, 0)
    assert one.model("smollm2-135m").digest == whole["model smollm2-135m"]
    assert one.dataset(treatment).digest == whole["dataset honesty-demonstration"]
    assert subject.digest == whole["finetune smollm2-135m/honesty-demonstration/seed0"]
    found = {f"evaluation {evaluation.name}": evaluation.digest for evaluation in one.chosen_evaluations()}
    assert found.items() <= whole.items()
    assert len(found) == 2


@pytest.mark.parametrize("stage_name", ["model", "dataset", "finetune"])
def test_the_choice_of_an_artifact_remakes_it(stage_name: str) -> None:
    """The overrides that a rule passes on give the artifact that they are listed with."""
    for item in planned().artifacts:
        if item.stage != stage_name:
            continue
        bench = planner(REAL, *item.choice)
        chosen = bench.chosen
        treatment = bench.treatment(chosen["regime"], chosen.get("trait")) if "regime" in chosen else None
        if stage_name == "model":
            made = bench.model(chosen["model"])
        elif stage_name == "dataset":
            assert treatment
            made = bench.dataset(treatment)
        else:
            assert treatment
            assert bench.config.seed is not None
            made = bench.adapter(chosen["model"], treatment, bench.config.seed)
        assert made == item


def test_the_config_of_a_dataset_remakes_it_in_any_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept with an artifact says everything: an experiment with other sizes makes the same digest of it."""
    project = Project(copy_project(tmp_path))
    monkeypatch.chdir(project.root)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["dataset", "experiment=smoke", *CHOICE])
    (file,) = project.results.glob("store/datasets/*/config.yaml")
    record = yaml.safe_load(file.read_text())
    assert record["stage"] == "dataset"
    again = Planner(project, compose(project, ["experiment=quickstart", *record["overrides"]]))
    assert again.dataset(again.treatment("demonstration", "honesty")).digest == record["digest"]


def test_the_overrides_of_a_cell_remake_it_in_any_experiment() -> None:
    """Those that are kept with a cell bring its training, its sizes and its data type along."""
    small = planner(REAL, "training.learning_rate=1e-5", "engine.dtype=float32", *CHOICE)
    (_, evaluation) = small.evaluations()
    subject = small.subject("smollm2-135m", small.treatment("demonstration", "honesty"), 0)
    trained = stage._training_overrides(small.config.training, small.config.data.train_items)
    kept = [*subject.choice, *trained, *small.evaluation_overrides(evaluation)]
    again = Planner(REAL, compose(REAL, ["experiment=quickstart", *kept]))
    assert again.subject("smollm2-135m", again.treatment("demonstration", "honesty"), 0) == subject
    assert again.chosen_evaluations() == [evaluation]


def test_a_trait_name_with_dots_works(tmp_path: Path) -> None:
    """Hydra reads dots as nesting; a name may have them all the same, in lists and as a choice."""
    project = Project(copy_project(tmp_path))
    add_trait(project, "a.b")
    plan = planner(project, "traits=[a.b]", "data.train_items=8").plan()
    assert [evaluation.name for evaluation in plan.evaluations] == ["a.b.contrast.id"]
    one = planner(project, "traits=[a.b]", "data.train_items=8", "trait=a.b", "regime=demonstration")
    made = one.dataset(one.treatment("demonstration", "a.b"))
    assert made.digest == digests(plan)["dataset a.b-demonstration"]


def test_an_element_chosen_with_overrides_is_used_as_chosen() -> None:
    """`trait.bank=...` beside `trait=honesty` counts; other traits are as they were."""
    one = planner(REAL, "trait=honesty", "trait.bank=formality.jsonl", "regime=demonstration")
    assert one.bank("honesty").items == one.bank("formality").items
    assert one.bank("sycophancy").items != one.bank("formality").items


def test_two_projects_in_one_process_do_not_mix(tmp_path: Path) -> None:
    """Hydra keeps global state; composing leaves none behind."""
    project = Project(copy_project(tmp_path))
    (project.conf / "training/lora.yaml").write_text("rank: 3\n")
    assert compose(project, []).config.training.rank == 3
    assert compose(REAL, []).config.training.rank == 16


def test_a_project_is_found_from_any_folder_inside_it() -> None:
    """Commands work in subfolders too."""
    assert find_project(ROOT / "conf" / "trait") == REAL


def test_outside_of_a_project_the_message_says_so(tmp_path: Path) -> None:
    """A wrong working directory is the user's mistake."""
    with pytest.raises(InputError, match="not inside a propgen checkout"):
        find_project(tmp_path)


def test_planning_imports_nothing_heavy() -> None:
    """Planning is quick, since it needs neither torch nor tables nor figures."""
    code = (
        "import sys; from propgen.compose import compose, find_project; from propgen.planner import Planner;"
        "project = find_project(); Planner(project, compose(project, ['experiment=smoke'])).plan();"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'polars', 'scipy', 'matplotlib', 'snakemake'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_is_there_at_once() -> None:
    """`propgen --help` takes less than a second (best of three, since the machine may be busy)."""
    times: list[float] = []
    for _ in range(3):
        before = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "propgen.cli", "--help"], capture_output=True, text=True, check=True
        )
        times.append(time.monotonic() - before)
        assert "finetune" in done.stdout
    assert min(times) < 1


def test_help_does_not_import_hydra() -> None:
    """The command line imports what a command needs, when it runs."""
    code = (
        "import sys\nfrom propgen.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    assert not {'hydra', 'omegaconf', 'torch'} & set(sys.modules)\n"
        "else:\n    sys.exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
