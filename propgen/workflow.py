"""What the Snakefile needs: the plan of this run, what is missing of it, and a shell line for every job.

While parsing, the main process composes and plans, relinks what has its object, and pins what it found. Processes that
are started for a job (on a cluster node, too) read that pin and look at no other file: a rule cannot vanish because
another run filled its cells meanwhile.
"""

from __future__ import annotations

import gc
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from propgen.compose import Project, check_writable, compose, find_project
from propgen.device import gpu_count
from propgen.digest import SHORT, digest
from propgen.errors import InputError, PropgenError, nearest
from propgen.files import write_text
from propgen.plan import BASE, FOLDERS, Plan, Subject, cell_file
from propgen.planner import Planner
from propgen.store import LEASE_SECONDS, Store, View
from propgen.survey import Group, Survey, is_base, survey

STORE = "results/store"
TABLES = ("cells.parquet", "matrix.parquet", "matrix.csv", "statistics/matrix-all.parquet")
GATES = ("statistics/gates.parquet", "statistics/attrition.parquet")
STATISTICS = (
    *("agreement.parquet", "controls.parquet", "power.parquet", "generality.parquet", "ledger.parquet"),
    *("structure.parquet", "models.parquet", "loadings.parquet", "comovement.parquet", "summary.md"),
)
PASSIVE = frozenset(
    (
        *("dryrun", "dag", "rulegraph", "filegraph", "d3dag", "summary", "detailed_summary", "lint", "list_rules"),
        *("list_target_rules", "unlock", "report", "archive", "containerize", "list_input_changes", "export_cwl"),
        *("list_code_changes", "list_params_changes", "list_conda_envs", "delete_all_output", "delete_temp_output"),
        *("cleanup_metadata", "cleanup_shadow", "print_compilation", "touch"),
    )
)
"""Snakemake's options with which nothing is computed, so that nobody needs to wait."""


@dataclass(frozen=True)
class Job:
    """One rule of the store's stages: the wildcard's allowed values, and the Hydra overrides of each."""

    stage: str
    name: str
    choices: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, Sequence[str]]
    common: tuple[str, ...]
    evaluations: tuple[str, ...] = ()
    pattern: str | None = None

    @property
    def outputs(self) -> list[str]:
        """Output patterns over the wildcard `name`."""
        folder = f"{STORE}/{FOLDERS[self.stage]}/{{name}}"
        return [f"{folder}/{file}" for file in self.evaluations] or [folder]

    @property
    def names(self) -> str:
        """Regular expression of the names that this rule makes, and of no others that are planned.

        Snakemake tries it on every file and every output of the rule, so where one short pattern says the same as a
        list of all names, it is used (a list takes twice as long to plan 54,675 missing cells).
        """
        return self.pattern or "|".join(re.escape(name) for name in self.choices)

    def needs(self, wildcards: Any) -> list[str]:
        """Return the input paths for one name."""
        return [f"{STORE}/{path}" for path in self.inputs[wildcards.name]]

    def args(self, wildcards: Any, output: Any) -> str:  # noqa: ARG002  # derived from outputs: changes trigger nothing
        """Return the command line's Hydra overrides for one name."""
        return shlex.join((*self.common, *self.choices[wildcards.name]))


class Work:
    """The plan of this run and what is missing of it, in the terms of rules."""

    def __init__(self, found: Survey, common: Sequence[str], pin: str) -> None:
        self.survey = found
        self.plan: Plan = found.plan
        self.common = tuple(common)
        self.pin = pin
        self.folder = f"results/{self.plan.name}"
        self.gpu = min(1, gpu_count())

    def jobs(self, stage: str) -> list[Job]:
        """Return the rules of a stage: none if nothing is missing, several for `evaluate`."""
        if stage == "evaluate":
            return [self._evaluate(i, group) for i, group in enumerate(self.survey.groups)]
        missing = self.survey.missing(stage)
        if not missing:
            return []
        choices = {item.name: (*item.choice, f"digest={item.digest}") for item in missing}
        return [Job(stage, stage, choices, {i.name: list(i.inputs.values()) for i in missing}, self.common)]

    def _evaluate(self, number: int, group: Group) -> Job:
        names = [evaluation.name for evaluation in group.evaluations]
        everything = len(names) == len(self.plan.evaluations)
        listed = () if everything else (f"evaluations=[{','.join(names)}]",)
        digests = [evaluation.digest for evaluation in group.evaluations]
        choices = {s.name: (*s.choice, *listed, f"digest={job_digest(s, digests)}") for s in group.subjects}
        adapters = {adapter.name: adapter.path for adapter in self.plan.adapters}
        inputs = {s.name: [s.model_path, *filter(None, [adapters.get(s.name)])] for s in group.subjects}
        files = tuple(cell_file(evaluation) for evaluation in group.evaluations)
        return Job("evaluate", f"evaluate_{number}", choices, inputs, self.common, files, self._pattern(group))

    def _pattern(self, group: Group) -> str | None:
        """Return a pattern for all base models, or for all finetunes, if that is what a group is."""
        based = is_base(group.subjects[0])
        if len(group.subjects) < sum(is_base(subject) == based for subject in self.plan.subjects):
            return None
        return f"[^/]++/{BASE}/[^/]++" if based else f"[^/]++/(?!{BASE}/)[^/]++/[^/]++"

    def paths(self, stage: str) -> list[str]:
        """Return the paths of all artifacts of a stage, present or not."""
        if stage == "evaluate":
            return [f"{STORE}/{cell.path}" for cell in self.plan.cells]
        return [f"{STORE}/{item.path}" for item in self.plan.artifacts if item.stage == stage]

    def cells(self, wildcards: Any) -> list[str]:  # noqa: ARG002  # Snakemake calls it only for rules that it uses
        """Return the paths of all cells, as an input function: thousands of files are registered when needed only."""
        return self.paths("evaluate")

    @property
    def needed(self) -> list[str]:
        """Return the paths of missing cells, and of missing artifacts that these need, as targets of their own.

        Snakemake starts nothing for a missing input of tables that look up to date.
        """
        return [f"{STORE}/{item.path}" for item in (*self.survey.needed, *self.survey.missing_cells)]

    @property
    def items(self) -> str:
        """Return the path of the table of all items."""
        return f"{self.folder}/items.parquet"

    @property
    def gates(self) -> list[str]:
        """Return the paths of the gates' tables."""
        return [f"{self.folder}/{name}" for name in GATES]

    @property
    def tables(self) -> list[str]:
        """Return the paths of the experiment's tables."""
        return [f"{self.folder}/{name}" for name in TABLES]

    @property
    def statistics(self) -> list[str]:
        """Return the paths of the statistics of the whole matrix."""
        return [f"{self.folder}/statistics/{name}" for name in STATISTICS]

    @property
    def figures(self) -> list[str]:
        """Return the paths of the experiment's figures."""
        names = [panel[0] for panel in self.plan.panels] + [chart[1] for chart in self.plan.charts]
        return [f"{self.folder}/figures/{name}.{kind}" for name in names for kind in self.plan.style["formats"]]

    def args(self, wildcards: Any, output: Any) -> str:  # noqa: ARG002  # derived from outputs: changes trigger nothing
        """Return the Hydra overrides of the stages behind the cells, which read the pinned plan."""
        return shlex.join((*self.common, f"plan={self.pin}"))


def job_digest(subject: Subject, evaluations: Sequence[str]) -> str:
    """Return the digest of what one evaluate job makes."""
    return digest([subject.digest, *evaluations])


def start(workflow: Any, config: Mapping[str, Any], argv: Sequence[str] = tuple(sys.argv)) -> Work:
    """Return the work of this Snakemake process; a user's mistake ends it with one line and its exit code."""
    # A DAG of 50,000 files makes millions of objects that live to the end; looking for garbage among them takes a
    # tenth of the time (measured: 7.7 s -> 6.9 s with nothing to do).
    gc.set_threshold(100_000, 50, 100)
    try:
        return _start(workflow, config, argv)
    except PropgenError as error:
        print(f"propgen: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _start(workflow: Any, config: Mapping[str, Any], argv: Sequence[str]) -> Work:
    common = common_overrides(config)
    pin = Path(".snakemake/propgen") / f"{digest(common)[:SHORT]}.json"
    if not workflow.is_main_process:
        return Work(Survey.from_json(json.loads(pin.read_text())), common, str(pin))
    project = find_project()
    plan = Planner(project, compose(project, common)).plan()
    view = open_view(project, plan.store)
    active = _executes(argv)
    check_writable(view.store.objects)
    check_writable(project.results)
    turn = _take_turn(project, wait=active)
    if turn:
        view.store.clean()
    found = survey(plan, view, relink=True, clear=turn is not None)
    if active:
        write_text(pin, json.dumps(found.as_json()))
    elif turn:
        turn.release()
    workflow.global_resources.setdefault("gpu", gpu_count())
    return Work(found, common, str(pin))


def open_view(project: Project, store: str) -> View:
    """Return the checkout's view of the store at a path (relative to the checkout)."""
    return View(project.root / STORE, Store(project.root / store))


def common_overrides(config: Mapping[str, Any]) -> list[str]:
    """Return the Hydra overrides that Snakemake's `--config` stands for."""
    known = ("experiment", "overrides")
    for key in config:
        if key not in known:
            raise InputError(
                f"--config {key}=...: unknown key; {nearest(key, known)}; settings go into overrides, "
                f"as in --config 'overrides=[\"{key}=...\"]'"
            )
    experiment = config.get("experiment") or "quickstart"
    return [f"experiment={experiment}", *split_overrides(config.get("overrides"))]


def split_overrides(value: object) -> list[str]:
    """Return overrides from a list, or from the text that Snakemake makes of an unquoted one.

    `[seeds=[0,1],name=x]` holds two; only commas outside brackets and quotes separate.
    """
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [str(part).strip() for part in value]  # type: ignore[reportUnknownVariableType]
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = [""]
    depth, quote = 0, ""
    for char in text:
        quote = "" if char == quote else char if not quote and char in "\"'" else quote
        depth += (char in "[{(") - (char in "]})") if not quote else 0
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [_unquote(part.strip()) for part in parts if part.strip()]


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _executes(argv: Sequence[str]) -> bool:
    """Return whether this command line makes Snakemake compute something."""
    from snakemake.cli import get_argument_parser

    args, _ = get_argument_parser().parse_known_args(list(argv[1:]))
    return not any(getattr(args, option, None) for option in PASSIVE)


_turn: list[SoftFileLease] = []


def _take_turn(project: Project, *, wait: bool) -> SoftFileLease | None:
    """Wait until no other run works in this checkout, then clear what a killed one left; returns the right to work.

    Snakemake would refuse a second run; waiting lets both end right. Its own lock, and its marks on outputs of killed
    jobs, are stale once the turn is ours: artifacts appear whole or not at all. Without `wait`, None if another run is
    at work.
    """
    state = project.root / ".snakemake"
    (state / "propgen").mkdir(parents=True, exist_ok=True)
    turn = SoftFileLease(state / "propgen" / "run.lock", lease_duration=LEASE_SECONDS, thread_local=False)
    try:
        turn.acquire(timeout=0)
    except Timeout:
        if not wait:
            return None
        print("propgen: another run works in this checkout; waiting for it to end", file=sys.stderr)
        turn.acquire(timeout=-1, poll_interval=0.5)
    _turn.append(turn)
    for stale in (state / "locks", state / "incomplete"):
        shutil.rmtree(stale, ignore_errors=True)
        stale.mkdir()
    return turn
