"""The survey: which cells are missing, what they need, and why something would run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from synthetic import fill, make_plan, make_view, publish

from propgen.plan import BASE, Artifact, Plan
from propgen.store import RESPONSES, View
from propgen.survey import Survey, reason, survey


def zero(*_: object) -> float:
    """Score nothing in particular."""
    return 0.0


@pytest.fixture
def plan() -> Plan:
    return make_plan(("honesty", "formality", "warmth"))


@pytest.fixture
def view(tmp_path: Path, plan: Plan) -> View:
    """Return a view in which everything of the plan is present and linked."""
    view = make_view(tmp_path)
    for item in plan.artifacts:
        publish(view, item)
        view.link(item.path, item.digest)
    fill(plan, view, zero)
    return view


def lose_cells(plan: Plan, view: View, lost: dict[str, list[str]]) -> None:
    """Remove the cells of `<treatment> <seed>` under the named evaluated traits."""
    for cell in plan.cells:
        if cell.evaluation.trait in lost.get(f"{cell.subject.treatment} {cell.subject.seed}", []):
            view.store.remove(cell.digest)


def test_nothing_is_missing_when_everything_is_there(plan: Plan, view: View) -> None:
    """A full store has no missing artifact, no missing cell, no group and no need."""
    found = survey(plan, view)
    assert (found.artifacts, found.cells, found.groups, found.needed) == (frozenset(), {}, [], [])


def test_everything_is_missing_from_an_empty_store(plan: Plan, tmp_path: Path) -> None:
    """Then every artifact is needed, inputs before what is made from them, and every cell is missing."""
    found = survey(plan, make_view(tmp_path / "empty"))
    assert found.needed == list(plan.artifacts)
    assert sorted(cell.path for cell in found.missing_cells) == sorted(cell.path for cell in plan.cells)
    assert [len(group.subjects) for group in found.groups] == [1, 8]


def test_finetunes_that_miss_the_same_cells_share_a_group_and_bases_stand_apart(plan: Plan, view: View) -> None:
    """Groups are by equal sets of missing evaluations; the base model never shares one with finetunes."""
    same = ["formality", "warmth"]
    lost = {"base 0": same, "honesty-demonstration 0": same, "warmth-demonstration 1": same}
    lose_cells(plan, view, lost | {"control-shuffled 0": ["warmth"]})
    found = survey(plan, view)
    shown = {
        tuple(f"{s.treatment} {s.seed}" for s in group.subjects): [e.trait for e in group.evaluations]
        for group in found.groups
    }
    assert shown == {
        ("base 0",): same,
        ("control-shuffled 0",): ["warmth"],
        ("honesty-demonstration 0", "warmth-demonstration 1"): same,
    }
    assert len(found.missing_cells) == 7


def test_only_missing_cells_need_artifacts(plan: Plan, view: View) -> None:
    """Pruned models, datasets and adapters of finished cells are missing, but nothing needs them."""
    for item in plan.artifacts:
        view.store.remove(item.digest)
    found = survey(plan, view)
    assert len(found.missing("finetune")) == len(plan.adapters)
    assert found.needed == []


def test_a_present_adapter_needs_the_model_and_not_its_dataset(plan: Plan, view: View) -> None:
    """One missing cell of a finetune that is there needs the pruned base model to score with, and no more."""
    for item in (*plan.models, *plan.datasets):
        view.store.remove(item.digest)
    lose_cells(plan, view, {"honesty-demonstration 0": ["warmth"]})
    assert survey(plan, view).needed == list(plan.models)


def test_a_missing_adapter_needs_its_own_dataset(plan: Plan, view: View) -> None:
    """One missing cell of a pruned finetune needs that adapter and its missing inputs, and nobody else's."""
    for item in plan.artifacts:
        view.store.remove(item.digest)
    lose_cells(plan, view, {"honesty-demonstration 0": ["warmth"]})
    needed = [item.name.rsplit("-", 1)[0] for item in survey(plan, view).needed]
    assert needed == ["m", "honesty-demonstration", "m/honesty-demonstration/seed0"]


def test_a_missing_base_cell_needs_the_model_alone(plan: Plan, view: View) -> None:
    """The base model has no adapter."""
    for item in plan.artifacts:
        view.store.remove(item.digest)
    lose_cells(plan, view, {"base 0": ["warmth"]})
    assert [item.stage for item in survey(plan, view).needed] == ["model"]


def test_relinking_restores_the_view_from_the_objects(plan: Plan, view: View) -> None:
    """Without its links an object still counts as present; relink=True makes them, and leaves right ones alone."""
    lost, kept = list(plan.cells)[3], list(plan.cells)[4]
    adapter = plan.adapters[0]
    for path in (lost.path, adapter.path):
        (view.root / path).unlink()
    before = (view.root / kept.path).lstat().st_ino
    assert survey(plan, view).cells == {}
    assert not (view.root / lost.path).exists()
    assert survey(plan, view, relink=True).artifacts == frozenset()
    assert view.shows(lost.path, lost.digest, cell=True)
    assert view.shows(adapter.path, adapter.digest)
    assert (view.root / kept.path).lstat().st_ino == before


def test_half_an_object_is_missing(plan: Plan, view: View) -> None:
    """An object's folder without its payload does not count, though a link leads to it."""
    cell = next(plan.cells)
    view.store.payload(cell.digest, cell=True).unlink()
    found = survey(plan, view, relink=True)
    assert found.cells == {cell.subject.name: (cell.evaluation.name,)}


def test_a_survey_survives_json(plan: Plan, view: View) -> None:
    """What is pinned reads back with the same plan, the same missing artifacts and the same groups."""
    lose_cells(plan, view, {"honesty-demonstration 0": ["warmth"], "base 0": ["honesty"]})
    view.store.remove(plan.datasets[0].digest)
    found = survey(plan, view)
    again = Survey.from_json(json.loads(json.dumps(found.as_json())))
    assert json.dumps(again.as_json()) == json.dumps(found.as_json())
    assert (again.artifacts, again.cells) == (found.artifacts, found.cells)
    assert [cell.digest for cell in again.missing_cells] == [cell.digest for cell in found.missing_cells]
    assert again.plan.matrix_digest == plan.matrix_digest


# -- reasons -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> View:
    """Return a view in which nothing is there."""
    return make_view(tmp_path)


def finetune(digest: str, config: dict[str, object], inputs: dict[str, str], version: int = 1) -> Artifact:
    """Return an adapter's artifact of one fixed treatment."""
    spec = {"kind": "finetune", "version": version, "config": config, "inputs": inputs}
    return Artifact("finetune", f"m/t/seed0-{digest[:12]}", digest, spec)


OLD = finetune("a" * 64, {"learning_rate": 3e-4, "epochs": 3, "modules": ["q", "v"]}, {"dataset": "d" * 64})
CHANGES = {
    "epochs 3 -> 4": finetune("b" * 64, {**OLD.spec["config"], "epochs": 4}, OLD.spec["inputs"]),
    "dataset dddddddddddd -> eeeeeeeeeeee": finetune("b" * 64, OLD.spec["config"], {"dataset": "e" * 64}),
    "finetune stage version 1 -> 2": finetune("b" * 64, OLD.spec["config"], OLD.spec["inputs"], 2),
    'modules ["q", "v"] -> ["q"]': finetune("b" * 64, {**OLD.spec["config"], "modules": ["q"]}, OLD.spec["inputs"]),
    "clip None -> 1.0": finetune("b" * 64, {**OLD.spec["config"], "clip": 1.0}, OLD.spec["inputs"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reason_names_what_changed(bare: View, change: str) -> None:
    """A setting, an input or the stage's version that differs from the finetune that is there is named."""
    publish(bare, OLD)
    bare.link(OLD.path, OLD.digest)
    assert reason(CHANGES[change], bare.root) == f"changed: {change}"


def test_a_reason_compares_with_the_latest_relative(bare: View) -> None:
    """Of several finetunes of one treatment and seed the last one that was linked is the nearest."""
    newer = finetune("c" * 64, {**OLD.spec["config"], "epochs": 5}, OLD.spec["inputs"])
    for age, item in ((100, OLD), (50, newer)):
        publish(bare, item)
        bare.link(item.path, item.digest)
        then = (bare.root / item.path).lstat().st_mtime - age
        os.utime(bare.root / item.path, (then, then), follow_symlinks=False)
    wanted = finetune("b" * 64, {**OLD.spec["config"], "epochs": 7}, OLD.spec["inputs"])
    assert reason(wanted, bare.root) == "changed: epochs 5 -> 7"


@pytest.mark.parametrize("text", ["", "- a\n", "spec: 3\n", "stage: finetune\n", "{", "\x00", None])
def test_a_reason_is_new_where_nothing_can_be_compared(bare: View, text: str | None) -> None:
    """Without relatives, with a dangling one, and with one whose config is unreadable, it is simply new."""
    assert reason(OLD, bare.root) == "new"
    relative = finetune("c" * 64, {}, {})
    publish(bare, relative)
    bare.link(relative.path, relative.digest)
    config = bare.store.folder(relative.digest) / "config.yaml"
    if text is None:
        bare.store.remove(relative.digest)
    else:
        config.write_text(text)
    assert reason(OLD, bare.root) == "new"


def test_the_base_is_a_subject_without_an_adapter(plan: Plan) -> None:
    """The synthetic plan that these tests stand on has one base subject a model, first, as real plans do."""
    assert [subject.treatment for subject in plan.subjects].index(BASE) == 0
    assert len(plan.subjects) == len(plan.adapters) + 1


def test_relinking_restores_responses_too(view: View) -> None:
    """What is there is linked again; what is not there is no gap, since cells do without."""
    plan = make_plan(("honesty",), views=[("rule", "id")])
    first, second, *_ = plan.responses
    view.store.make(first.digest, lambda folder: (folder / RESPONSES).touch(), cell=True, file=RESPONSES)
    survey(plan, view)
    assert not (view.root / first.path).is_symlink()
    survey(plan, view, relink=True)
    assert (view.root / first.path).resolve() == view.store.folder(first.digest).resolve() / RESPONSES
    assert not (view.root / second.path).is_symlink()
