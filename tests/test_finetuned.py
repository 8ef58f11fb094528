"""Base models that are full finetunes of other base models: how they are planned, surveyed and made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from conftest import copy_project
from planning import REAL, changed, digests, planned, planner, write_items
from synthetic import fill, publish

from propgen.bank import NEUTRAL, load
from propgen.compose import Project, compose
from propgen.config import Training
from propgen.digest import Spec, digest, identity
from propgen.errors import InputError
from propgen.plan import Artifact, Plan
from propgen.planner import Planner
from propgen.stage import STAGES, open_bench
from propgen.survey import survey
from propgen.tables import read_cell
from propgen.terminal import estimate, show_status
from propgen.workflow import job_digest, open_view

MODEL, ALMANAC = "smollm2-135m", "smollm2-135m-almanac"
CHAIN = [MODEL, "voice-almanac", f"{MODEL}/voice-almanac/seed0", ALMANAC]
"""What the shipped one is made from, and itself, without digests."""
NEW = "finetuned: {base: smollm2-135m, regime: voice, items: 6, seed: 3, training: {learning_rate: 1e-4}}\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return an editable copy of the project with a small neutral regime, `voice`, and a model `new` made of it."""
    (tmp_path / "checkout").mkdir()
    found = Project(copy_project(tmp_path / "checkout"))
    about = {"domain": "work", "split": "train"}
    items = [
        {"item": f"v-{k}", "family": f"v-{k}", "prompt": f"{k}?", "response": f"Lo, {k}.", **about} for k in range(8)
    ]
    write_items(found.conf / "regime/voice.jsonl", items)
    (found.conf / "regime/voice.yaml").write_text("kind: control-benign\ncontrol: true\nbank: voice.jsonl\n")
    (found.conf / "model/new.yaml").write_text(NEW)
    return found


def names(artifacts: Sequence[Artifact]) -> list[str]:
    """Return names without digests."""
    return [item.name.rsplit("-", 1)[0] for item in artifacts]


def write_model(project: Project, name: str, text: str) -> None:
    """Write a model's config."""
    (project.conf / f"model/{name}.yaml").write_text(text)


# -- the plan ------------------------------------------------------------------------------------------------------


def test_the_shipped_one_is_planned_with_all_that_it_is_made_from() -> None:
    """Base, dataset and finetune come first; the base is no row of the matrix."""
    plan = planned(f"models=[{ALMANAC}]")
    assert names(list(plan.artifacts))[:4] == CHAIN
    assert {subject.model for subject in plan.subjects} == {ALMANAC}
    assert names(plan.models) == [ALMANAC]
    assert len(list(plan.cells)) == len(list(planned().cells))


@pytest.mark.parametrize("models", [f"[{ALMANAC},{MODEL}]", f"[{MODEL},{ALMANAC}]"])
def test_each_artifact_is_planned_once_and_behind_its_inputs(models: str) -> None:
    """Also when the base is in the experiment itself, in any order, and its digests are those that it had."""
    plan = planned(f"models={models}")
    seen: dict[str, str] = {}
    for item in plan.artifacts:
        assert item.path not in seen
        assert set(item.inputs.values()) <= seen.keys()
        assert {name: seen[path] for name, path in item.inputs.items()} == item.spec[
            "inputs"
        ] or item.stage == "dataset"
        seen[item.path] = item.digest
    assert changed(planned(), plan) == {"tables", "figures"}
    assert digests(planned()).keys() < digests(plan).keys()
    assert len(plan.subjects) == 2 * len(planned().subjects)


def test_identity_of_a_fetched_model_is_what_it_was() -> None:
    """The new key is in no digest of a model that does not use it."""
    model = planner(REAL).element("model", MODEL)
    assert set(identity(model)) == {"source", "file", "sha256", "licence"}
    assert planned().models[0].digest.startswith("9962dca51890")


def test_specs_of_a_finetuned_model(project: Project) -> None:
    """It is its base and its finetune, and the finetune an ordinary one with the settings of the model's config."""
    plan = planner(project, "models=[new]").plan()
    base, data, finetune = plan.origins
    examples = planner(project).examples(planner(project).treatment("voice", None), 6)
    settings = identity(Training(method="full", learning_rate=1e-4)) | {"seed": 3}
    assert data.spec == Spec("dataset", {"kind": "control-benign"}, {"examples": digest(examples)}).as_json()
    assert finetune.spec == Spec("finetune", settings, {"model": base.digest, "dataset": data.digest}).as_json()
    assert plan.models[0].spec == Spec("model", {}, {"base": base.digest, "finetune": finetune.digest}).as_json()
    assert plan.models[0].inputs == {"base": base.path, "finetune": finetune.path}


@pytest.mark.parametrize(
    "common",
    [
        ["experiment=quickstart"],
        ["experiment=smoke", "training=full", "training.dtype=float32", "training.clip=3", "data.train_items=4"],
        ["experiment=smoke", "training=full", "training={epochs:9,schedule:cosine,rank_stabilised:true}", "seeds=[5]"],
    ],
)
def test_a_pasted_line_makes_the_same_artifact_whatever_was_overridden_before(common: list[str]) -> None:
    """An artifact's choice comes behind the experiment's own settings, and wins over each of them."""
    plan = Planner(REAL, compose(REAL, [*common, f"models=[{ALMANAC}]"])).plan()
    assert [item.digest for item in plan.origins] == [item.digest for item in planned(f"models=[{ALMANAC}]").origins]
    for item in (*plan.origins, *plan.models):
        one = Planner(REAL, compose(REAL, [*common, *item.choice]))
        if item.stage == "model":
            made = one.model(one.chosen["model"])
        else:
            treatment = one.treatment(one.chosen["regime"], None)
            seed = one.config.seed
            made = one.dataset(treatment) if seed is None else one.adapter(one.chosen["model"], treatment, seed)
        assert (made.digest, made.path) == (item.digest, item.path)


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("seed: 3", "seed: 4", True),
        ("items: 6", "items: 7", True),
        ("1e-4", "2e-4", True),
        ("{learning_rate: 1e-4}", "{learning_rate: 1e-4, epochs: 3}", False),
        ("\n", "\nlicence: Apache-2.0\n", False),
    ],
)
def test_what_a_finetuned_model_is(project: Project, old: str, new: str, differs: bool) -> None:
    """Its settings are, a default that is spelled out and the licence are not."""
    before = planner(project).model("new").digest
    write_model(project, "new", NEW.replace(old, new))
    assert (planner(project).model("new").digest != before) is differs


def test_the_training_of_an_experiment_does_not_reach_its_base_models(project: Project) -> None:
    """The finetunes of a finetuned model change, the model does not."""
    before, after = (planner(project, "models=[new]", f"training.epochs={n}").plan() for n in (1, 2))
    assert before.models == after.models
    assert before.origins == after.origins
    assert {a.digest for a in before.adapters}.isdisjoint(a.digest for a in after.adapters)


def test_a_chain_of_finetuned_models(project: Project) -> None:
    """Each link is made of the one before."""
    write_model(project, "newer", NEW.replace("base: smollm2-135m", "base: new"))
    plan = planner(project, "models=[newer,new]").plan()
    chain = [MODEL, "voice", f"{MODEL}/voice/seed3", "new", "new/voice/seed3", "newer"]
    assert names(list(plan.artifacts))[:6] == chain


def test_a_plan_with_origins_comes_back_from_json(project: Project) -> None:
    """Jobs read it from the pin."""
    plan = planner(project, "models=[new]").plan()
    assert plan.origins
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


def test_the_almanac_answers_other_questions_at_an_even_length() -> None:
    """160 items of ten domains, 35 to 70 words each; no two, benign ones included, share three runs of five words."""
    items, benign = (
        load(REAL.conf / f"regime/{name}.jsonl", NEUTRAL).items for name in ("voice-almanac", "control-benign")
    )
    assert (len(items), len({item["domain"] for item in items})) == (160, 10)
    assert all(35 <= len(item.get("response", "").split()) <= 70 for item in items)
    runs = [_runs(f"{item['prompt']} {item.get('response')}") for item in (*items, *benign)]
    assert not [1 for x, y in combinations(runs, 2) if len(x & y) >= 3]


def _runs(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z']+", text.lower())
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("licence: a\n", "'source' is missing; add it, or 'finetuned'"),
        (NEW + "source: ./folder\n", "both 'finetuned' and 'source'"),
        (NEW + f"revision: {'ab' * 20}\n", "both 'finetuned' and 'revision'"),
        (NEW.replace("base: smollm2-135m", "base: new"), "'new' would be made from itself (new -> new)"),
        (NEW.replace("base: smollm2-135m", "base: other"), "'new' would be made from itself (new -> other -> new)"),
        (NEW.replace("smollm2-135m", "smolm2-135m"), "finetuned.base: unknown model 'smolm2-135m'; did you mean 'smo"),
        (NEW.replace("base: smollm2-135m, ", ""), "conf/model/new.yaml: 'base' is missing; add it"),
        (NEW.replace(": voice", ": voise"), "finetuned.regime: unknown regime 'voise'; did you mean 'voice'"),
        (NEW.replace(": voice", ": demonstration"), "'demonstration' has no bank of its own"),
        (NEW.replace(": voice", ": control-shuffled"), "'control-shuffled' has no bank of its own"),
        (NEW.replace("items: 6", "items: 0"), "finetuned.items=0: expected at least 1"),
        (NEW.replace("items: 6", "items: 9"), "8 training items, but 9 are asked for"),
        (NEW.replace("1e-4", "0"), "finetuned.training.learning_rate=0.0: expected a number in (0, inf)"),
        (NEW.replace("{lea", "{method: lora, lea"), "finetuned.training.method=lora: expected full"),
        (NEW.replace("seed: 3", "seed: -1"), "conf/model/new.yaml: finetuned.seed -1: expected 0 or more"),
        (NEW.replace("seed: 3", "sed: 3"), "unknown key 'sed'"),
    ],
)
def test_a_finetuned_model_that_cannot_be_is_refused(project: Project, text: str, said: str) -> None:
    """While planning, in one sentence."""
    write_model(project, "other", NEW.replace("base: smollm2-135m", "base: new"))
    write_model(project, "new", text)
    with pytest.raises(InputError, match=re.escape(said)):
        planner(project, "models=[new]").plan()


# -- what is needed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "needed"),
    [
        ([], [MODEL, "voice", f"{MODEL}/voice/seed3", "new"]),
        ([MODEL], ["voice", f"{MODEL}/voice/seed3", "new"]),
        ([f"{MODEL}/voice/seed3"], [MODEL, "new"]),
        ([MODEL, f"{MODEL}/voice/seed3"], ["new"]),
        (["new"], []),
    ],
)
def test_needed_is_what_leads_to_missing_cells(project: Project, present: list[str], needed: list[str]) -> None:
    """A missing model needs its base and its finetune, a missing finetune its dataset; what is there needs nothing."""
    plan = planner(project, "models=[new]", "data={train_items:4,test_items:3}").plan()
    view = open_view(project, plan.store)
    fill(plan, view, lambda *_: 0.0, leave_out=[cell.digest for cell in list(plan.cells)[:1]])
    for item in plan.artifacts:
        if names([item])[0] in present:
            publish(view, item)
    assert names(survey(plan, view).needed) == needed


def test_status_marks_a_base_model_that_is_to_be_finetuned(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the estimate counts that finetune by its own examples and epochs."""
    monkeypatch.chdir(project.root)
    overrides = ["experiment=smoke", f"models=[new,{MODEL}]"]
    show_status(overrides)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "new *" in lines
    assert MODEL in lines
    one = Planner(project, compose(project, overrides))
    plan = one.plan()
    view = open_view(project, plan.store)
    full = estimate(one, survey(plan, view), view).finetune
    publish(view, plan.models[0])
    assert 0 < estimate(one, survey(plan, view), view).finetune < full


# -- the whole chain -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a stage in a project whose base model is the tiny one."""
    from tiny import write_tiny_model

    (tmp_path / "tiny").mkdir()
    write_tiny_model(tmp_path / "tiny")
    write_model(project, MODEL, f"source: {tmp_path / 'tiny'}\n")
    monkeypatch.chdir(project.root)
    return lambda stage, *overrides: STAGES[stage](open_bench(project, compose(project, overrides)))


SMALL = ("experiment=smoke", "models=[new]", "traits=[honesty]", "data={train_items:4,test_items:3}")


def test_the_whole_chain_with_a_tiny_model(project: Project, run: Callable[..., None]) -> None:
    """Model, dataset, full finetune, finetuned model; then LoRA finetunes and cells of it, as of any base model."""
    from safetensors.torch import load_file

    plan = Planner(project, compose(project, SMALL)).plan()
    view = open_view(project, plan.store)
    for item in plan.artifacts:
        run(item.stage, *SMALL, *item.choice, f"digest={item.digest}")
    for subject in plan.subjects:
        digest = job_digest(subject, [evaluation.digest for evaluation in plan.evaluations])
        run("evaluate", *SMALL, *subject.choice, f"digest={digest}")
    assert survey(plan, view).cells == {}
    base, _, finetune, made = (view.store.folder(a.digest) for a in (*plan.origins, *plan.models))
    weights = load_file(made / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert (made / "model.safetensors").read_bytes() == (finetune / "model.safetensors").read_bytes()
    assert all((made / file.name).read_bytes() == file.read_bytes() for file in base.glob("token*"))
    assert list(base.glob("token*"))
    assert any((weights[name] != before[name]).any() for name in before)
    assert not [name for name in ("log.jsonl", "timing.json") if (made / name).exists()]
    assert all((view.store.folder(a.digest) / "adapter_model.safetensors").is_file() for a in plan.adapters)
    cells = [read_cell(view.store.payload(cell.digest, cell=True), cell.digest) for cell in plan.cells]
    assert all(cell.rows["score"].is_finite().all() for cell in cells)


def test_a_finetuned_model_needs_its_inputs_and_remakes_itself(project: Project, run: Callable[..., None]) -> None:
    """Without them the stage says what to make first; its config.yaml leads to the same digest."""
    from propgen.errors import PropgenError

    plan = Planner(project, compose(project, SMALL)).plan()
    with pytest.raises(PropgenError, match=r"its finetune .* is not in the store; make it first"):
        run("model", "model=new")
    for item in plan.origins:
        run(item.stage, *item.choice)
    run("model", "model=new")
    (model,) = plan.models
    record = yaml.safe_load((open_view(project, plan.store).store.folder(model.digest) / "config.yaml").read_text())
    assert (record["stage"], record["digest"], record["overrides"]) == ("model", model.digest, ["model=new"])
    assert record["spec"] == json.loads(json.dumps(asdict(model)))["spec"]
