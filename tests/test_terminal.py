"""The terminal: what `plan` and `status` print agrees with what is there, and can be read in 80 columns."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TINY, copy_project
from synthetic import publish

from propgen.cli import main
from propgen.compose import Project, compose
from propgen.plan import Plan
from propgen.planner import Planner
from propgen.store import CELL, RESPONSES, View
from propgen.survey import survey
from propgen.terminal import (
    CHARACTERS_PER_TOKEN,
    GENERATED_TOKENS_PER_SECOND,
    ITEMS_PER_SECOND,
    START_SECONDS,
    TEMPLATE_TOKENS,
    TRAIN_TOKENS_PER_SECOND,
    estimate,
    show_plan,
    show_status,
)
from propgen.workflow import open_view

SMOKE = ("experiment=smoke", *TINY)
WIDE = (*SMOKE, "evaluated=[honesty,formality,sycophancy]", "protocols=[contrast,choice]", "contexts=[id,far]")
"""Twelve evaluations."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a checkout of one's own, in which this process works, in a terminal of 80 columns."""
    monkeypatch.chdir(copy_project(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return Project(tmp_path)


Printed = Callable[[Callable[[Sequence[str]], None], Sequence[str]], list[str]]


@pytest.fixture
def printed(project: Project, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return a function that runs a command and returns its lines."""

    def run(command: Callable[[Sequence[str]], None], overrides: Sequence[str]) -> list[str]:
        command(overrides)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


def planned(project: Project, overrides: Sequence[str]) -> tuple[Planner, Plan, View]:
    """Return the plan of a command line, and the view of its checkout."""
    planner = Planner(project, compose(project, overrides))
    plan = planner.plan()
    return planner, plan, open_view(project, plan.store)


def make_cells(plan: Plan, view: View, count: int) -> None:
    """Make the plan's first cells, empty but present."""
    for cell in list(plan.cells)[:count]:
        view.store.make(cell.digest, lambda folder: (folder / CELL).touch(), cell=True)


def counts(lines: Sequence[str]) -> dict[str, list[int]]:
    """Return the table of counts: stage to planned, present and to run."""
    rows = [re.findall(r"[\w ]+", line.strip()) for line in lines if re.search(r"\d\s*[│|]", line)]
    return {row[0].strip(): [int(cell) for cell in row[1:]] for row in rows}


def test_an_empty_project_has_everything_to_run(project: Project, printed: Printed) -> None:
    """Each stage is counted, each artifact named with its reason, and the time is a guess that says so."""
    lines = printed(show_plan, SMOKE)
    assert lines[0] == "smoke: 3 treatments with controls x 2 evaluations x 1 base model"
    assert counts(lines) == {
        "base models": [1, 0, 1],
        "datasets": [3, 0, 3],
        "finetunes": [3, 0, 3],
        "cells": [8, 0, 8],
    }
    _, plan, _ = planned(project, SMOKE)
    assert [line for line in lines if line.endswith(": new")] == [f"  {a.stage} {a.name}: new" for a in plan.artifacts]
    assert "assumed" in " ".join(lines)


def test_counts_follow_what_is_there(project: Project, printed: Printed) -> None:
    """With three finetunes and five cells present, three cells are to run and nothing is to be finetuned."""
    _, plan, view = planned(project, SMOKE)
    for item in plan.artifacts:
        publish(view, item)
    view.store.remove(plan.datasets[0].digest)
    make_cells(plan, view, 5)
    lines = printed(show_plan, SMOKE)
    assert counts(lines) == {
        "base models": [1, 1, 0],
        "datasets": [3, 2, 0],
        "finetunes": [3, 3, 0],
        "cells": [8, 5, 3],
    }
    assert any(line.startswith("About 0 s of finetuning") for line in lines)


def test_a_full_store_leaves_nothing_to_run(project: Project, printed: Printed) -> None:
    """Cells that are there need nothing: no time is estimated though every artifact is gone."""
    _, plan, view = planned(project, SMOKE)
    make_cells(plan, view, 8)
    lines = printed(show_plan, SMOKE)
    assert counts(lines)["finetunes"] == [3, 0, 0]
    assert counts(lines)["cells"] == [8, 8, 0]
    assert "Every cell is there" in " ".join(lines)
    assert "About" not in " ".join(lines)


def test_a_changed_setting_is_the_reason(project: Project, printed: Printed) -> None:
    """The plan says what differs from the finetune that is there, whole and on one line."""
    _, plan, view = planned(project, (*SMOKE, "training.learning_rate=3e-4"))
    for item in plan.artifacts:
        publish(view, item)
        view.link(item.path, item.digest)
    lines = printed(show_plan, (*SMOKE, "training.learning_rate=1e-4"))
    named = [line for line in lines if line.startswith("  finetune")]
    assert len(named) == 3
    assert all(line.endswith(": changed: learning_rate 0.0003 -> 0.0001") for line in named)


def test_a_long_plan_is_cut_short(project: Project, printed: Printed) -> None:
    """Eight artifacts are named, the others are counted."""
    lines = printed(show_plan, (*SMOKE, "seeds=[0,1,2,3,4]"))
    assert sum(line.endswith(": new") for line in lines) == 8
    assert "  ... and 7 more" in lines


def test_the_estimate_counts_what_is_needed_alone(project: Project) -> None:
    """Pruned finetunes whose cells are there take no time; recorded speeds replace the guess, and garbage does not."""
    planner, plan, view = planned(project, SMOKE)
    make_cells(plan, view, 6)
    cost = estimate(planner, survey(plan, view), view)
    assert cost.evaluate == pytest.approx(2 * 3 / ITEMS_PER_SECOND + START_SECONDS)
    examples = planner.examples(plan.treatments[-1])
    texts = sum(len(turn["content"]) for example in examples for turn in example["messages"])
    tokens = planner.config.training.epochs * (texts / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS * len(examples))
    assert cost.finetune == pytest.approx(tokens / TRAIN_TOKENS_PER_SECOND + START_SECONDS)
    assert not cost.measured
    for adapter, timing in zip(plan.adapters, ("{", '{"tokens_per_second": 1000.0}'), strict=False):
        publish(view, adapter)
        (view.store.folder(adapter.digest) / "timing.json").write_text(timing)
    cost = estimate(planner, survey(plan, view), view)
    assert cost.measured
    assert cost.finetune == pytest.approx(tokens / 1000 + START_SECONDS)


def test_responses_that_are_to_be_generated_take_time(project: Project) -> None:
    """As many tokens as they may have; stored ones only need their scores, which are quick."""
    planner, plan, view = planned(project, (*SMOKE, "evaluated=[]", "columns=[formality.rule.id]"))
    tokens = 32 * 2 * 64
    first, *others = plan.responses
    cost = estimate(planner, survey(plan, view), view)
    assert cost.evaluate == pytest.approx(4 * (tokens / GENERATED_TOKENS_PER_SECOND + START_SECONDS))
    view.store.make(first.digest, lambda folder: (folder / RESPONSES).touch(), cell=True, file=RESPONSES)
    cost = estimate(planner, survey(plan, view), view)
    assert cost.evaluate == pytest.approx(len(others) * tokens / GENERATED_TOKENS_PER_SECOND + 4 * START_SECONDS)


def marks(lines: Sequence[str]) -> dict[str, list[bool]]:
    """Return the grid of `status`: row label to presence of its cells, over all blocks."""
    found: dict[str, list[bool]] = {}
    for line in lines:
        if row := re.fullmatch(r"  (\S.*?)((?: +[●○x-])+)", line):
            found.setdefault(row[1], []).extend(mark in "●x" for mark in row[2].split())
    return found


def test_the_grid_shows_each_cell(project: Project, printed: Printed) -> None:
    """The first five cells are present, the others to run; a star marks finetunes that are to run, too."""
    _, plan, view = planned(project, SMOKE)
    publish(view, plan.adapters[2])
    make_cells(plan, view, 5)
    lines = printed(show_status, SMOKE)
    assert marks(lines) == {
        "base": [True, True],
        "control-shuffled seed 0": [True, True],
        "honesty-demonstration seed 0 *": [True, False],
        "formality-demonstration seed 0": [False, False],
    }
    assert "1 honesty.contrast.id" in " ".join(lines)
    assert "2 formality.contrast.id" in " ".join(lines)


def test_twelve_evaluations_stay_legible_in_80_columns(project: Project, printed: Printed) -> None:
    """One narrow column each under its number, no row is wrapped or cut, and the legend names every number."""
    _, plan, _ = planned(project, WIDE)
    assert len(plan.evaluations) == 12
    lines = printed(show_status, WIDE)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert [line.split() for line in lines if re.fullmatch(r"[\d ]+", line)] == [[str(n) for n in range(1, 13)]]
    assert {label: len(row) for label, row in marks(lines).items()} == dict.fromkeys(marks(lines), 12)
    assert len(marks(lines)) == len(plan.subjects)
    legend = dict(re.findall(r"(\d+) (\w+\.\w+\.\w+)", "\n".join(lines)))
    assert legend == {str(number): e.name for number, e in enumerate(plan.evaluations, 1)}


def test_more_evaluations_than_fit_go_on_below(
    project: Project, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a narrow terminal the grid is cut into blocks, each with all rows, and nothing is lost."""
    monkeypatch.setenv("COLUMNS", "46")
    _, plan, view = planned(project, WIDE)
    make_cells(plan, view, 17)
    lines = printed(show_status, WIDE)
    assert max(map(len, lines[1:])) <= 46
    shown = [mark for subject in marks(lines).values() for mark in subject]
    assert len(shown) == 48
    assert sum(shown) == 17


def test_two_models_have_rows_of_their_own(project: Project, printed: Printed) -> None:
    """Rows stand under the name of their base model."""
    (project.conf / "model/other.yaml").write_text(f"source: wheel:other==1\nfile: a.gguf\nsha256: {'a' * 64}\n")
    lines = printed(show_status, (*SMOKE, "models=[smollm2-135m,other]"))
    names = [line for line in lines if line in ("smollm2-135m", "other")]
    assert names == ["smollm2-135m", "other"]
    assert sum(line.startswith("  base") for line in lines) == 2


def test_a_terminal_without_unicode_gets_plain_marks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of an error half way."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    for command in (show_status, show_plan):
        command(SMOKE)
    sys.stdout.flush()
    assert marks(raw.getvalue().decode("ascii").splitlines())["base"] == [False, False]


def test_the_commands_print_the_same_through_the_command_line(checkout_lines: Callable[[str], list[str]]) -> None:
    """`propgen status` and `propgen plan` reach these functions, from a subfolder too."""
    assert counts(checkout_lines("plan"))["cells"] == [8, 0, 8]
    assert len(marks(checkout_lines("status"))) == 4


@pytest.fixture
def checkout_lines(project: Project, capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """Return what a propgen command prints, run in `conf/`."""

    def run(command: str) -> list[str]:
        os.chdir(project.conf)
        with pytest.raises(SystemExit) as ended:
            main([command, *SMOKE])
        assert ended.value.code == 0
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


def test_reasons_with_brackets_are_shown(project: Project, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets in a reason are no markup."""
    monkeypatch.setattr("propgen.terminal.reason", lambda *_: f"changed: modules {json.dumps(['q'])} -> [bold]")
    assert any(line.endswith('modules ["q"] -> [bold]') for line in printed(show_plan, SMOKE))
