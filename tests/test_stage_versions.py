"""Stage versions: whoever changes what a stage computes has to raise its version, or say that nothing changes.

`stage_sources.json` holds, for each key of `propgen.digest.VERSIONS`, the version and a hash of the code behind it:
what its entry functions reach inside the package, without comments, docstrings, annotations, messages of errors and
log lines. `python tests/test_stage_versions.py` writes the file anew.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from propgen.digest import VERSIONS

PACKAGE = Path(__file__).resolve().parents[1] / "propgen"
RECORD = Path(__file__).with_name("stage_sources.json")
SCRIPT = "python tests/test_stage_versions.py"

ENTRIES: dict[str, tuple[str, ...]] = {
    "model": ("model.fetch", "model.assemble"),
    "dataset": ("bank.load", "regime.build", "dataset.write"),
    "finetune": ("dataset.read", "training.finetune"),
    "contrast": ("scoring.contrast", "model.load_frozen", "tables.write_cell"),
    "choice": ("scoring.choice", "model.load_frozen", "tables.write_cell"),
    "generation": ("generation.generate", "model.load_frozen", "tables.write_responses"),
    "rule": ("rule.score", "tables.read_responses", "tables.write_cell"),
    "items": ("items.collect", "items.write_items"),
    "gates": ("gates.gates", "gates.write"),
    "matrix": ("analysis.tabulate", "analysis.write_tables"),
    "statistics": ("statistics.tabulate", "statistics.write"),
    "figures": ("figures.draw",),
}
"""The functions that make a stage's artifacts."""

ELSEWHERE = ("compose", "config", "digest", "errors", "limits", "plan", "planner", "store", "survey")
"""Modules that say what is made and where, not what is in it; values of configs are in digests themselves."""

IGNORED = ("annotation", "returns", "type_comment", "type_params", "kind", "ctx")
"""Fields of syntax trees that change no result, or that differ between versions of Python."""


@dataclass
class Module:
    """A parsed module. imported: name to module and, unless that is the module itself, name there."""

    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)


@cache
def parse(file: Path) -> Module:
    """Return what a module defines, imports from the package, and does when it is imported."""
    module = Module()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module.imported |= imports(node)
        elif names := bound(node):
            for name in names:
                module.defined.setdefault(name, []).append(node)
        elif not is_text(node):
            module.loose.append(node)
    return module


def bound(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)]


def imports(node: ast.AST) -> dict[str, tuple[str, str | None]]:
    """Return the names that a statement anywhere below `node` imports from the package."""
    found: dict[str, tuple[str, str | None]] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom) and (part.module or "").split(".")[0] == "propgen":
            inside = (part.module or "").partition(".")[2]
            for alias in part.names:
                found[alias.asname or alias.name] = (inside, alias.name) if inside else (alias.name, None)
    return found


def is_text(node: ast.AST) -> bool:
    """Return whether a statement is a docstring or a log line."""
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return isinstance(value.func.value, ast.Name) and value.func.value.id == "log"
    return isinstance(value, ast.Constant)


def shape(node: object) -> str:
    """Return a syntax tree as text, without what changes no result."""
    if isinstance(node, list):
        return f"[{','.join(shape(part) for part in node if not is_text(part))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        return "Raise"
    parts = [(name, value) for name, value in ast.iter_fields(node) if name not in IGNORED and value not in (None, [])]
    return f"{type(node).__name__}({','.join(f'{name}={shape(value)}' for name, value in parts)})"


@cache
def reached(package: Path, entries: tuple[str, ...]) -> dict[str, str]:
    """Return `module.name` to shape of all that the entries reach, with what their modules do when imported."""
    todo = [tuple(entry.split(".")) for entry in entries]
    found: dict[str, str] = {}
    while todo:
        where, name = todo.pop()
        if f"{where}.{name}" in found or where in ELSEWHERE:
            continue
        module = parse(package / f"{where}.py")
        nodes = module.defined.get(name, [])
        if not nodes and name in module.imported:  # passed on
            todo.append(module.imported[name])  # type: ignore[arg-type]
        for label, parts in ((f"{where}.{name}", nodes), (f"{where}.", module.loose)):
            if parts and label not in found:
                found[label] = shape(parts)
                todo += references(where, module, parts)
    return found


def references(where: str, module: Module, nodes: list[ast.stmt]) -> list[tuple[str, str]]:
    """Return module and name of what statements mention of the package."""
    found: list[tuple[str, str]] = []
    for node in nodes:
        imported = module.imported | imports(node)
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in module.defined:
                found.append((where, part.id))
            if isinstance(part, ast.Name) and (target := imported.get(part.id)) and target[1]:
                found.append((target[0], target[1]))
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                target = imported.get(part.value.id)
                found += [(target[0], part.attr)] if target and not target[1] else []
    return found


def source(kind: str, package: Path = PACKAGE) -> str:
    """Return the hash of the code behind a stage."""
    return hashlib.sha256(json.dumps(reached(package, ENTRIES[kind]), sort_keys=True).encode()).hexdigest()


def current() -> dict[str, dict[str, Any]]:
    """Return what the record has to be."""
    return {kind: {"version": version, "source": source(kind)} for kind, version in VERSIONS.items()}


@pytest.mark.parametrize("kind", VERSIONS)
def test_a_changed_stage_has_a_new_version(kind: str) -> None:
    """Otherwise stores would pass off what the old code made for what the new code makes."""
    assert kind in ENTRIES, f"name the functions that make '{kind}' in ENTRIES of {Path(__file__).name}"
    recorded = json.loads(RECORD.read_text()).get(kind, {})
    if recorded.get("source") != source(kind) and recorded.get("version") == VERSIONS[kind]:
        pytest.fail(
            f"the code behind stage '{kind}' changed: raise VERSIONS['{kind}'] in propgen/digest.py if results change, "
            f"then `{SCRIPT}` rewrites the record"
        )
    assert recorded == {"version": VERSIONS[kind], "source": source(kind)}, f"`{SCRIPT}` rewrites the record"


def test_the_record_names_no_other_stage() -> None:
    """A stage that is gone leaves no line."""
    assert list(json.loads(RECORD.read_text())) == list(VERSIONS)


def test_a_stage_reaches_its_own_code_and_not_its_neighbours() -> None:
    """An edit of one protocol asks for no new version of the other, but an edit of what both use does."""
    contrast, choice = (set(reached(PACKAGE, ENTRIES[kind])) for kind in ("contrast", "choice"))
    assert "scoring.contrast" in contrast - choice
    assert "scoring.choice" in choice - contrast
    assert {"scoring.logprobs", "model.load_frozen"} <= contrast & choice
    rule = set(reached(PACKAGE, ENTRIES["rule"]))
    assert "rule.score" in rule
    assert not any(name.startswith(("generation.", "model.", "scoring.")) for name in rule)
    finetune = set(reached(PACKAGE, ENTRIES["finetune"]))
    assert {"training.finetune", "trainer.ResponseTrainer", "encoding.encode_all", "model.load"} <= finetune
    assert not {"model.fetch", "model.assemble"} & finetune
    assert {"regime.control_shuffled", "bank.in_turn", "bank.messages"} <= set(reached(PACKAGE, ENTRIES["dataset"]))
    assert any(name.startswith("inference.") for name in reached(PACKAGE, ENTRIES["matrix"]))


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ('"""Every training item with its positive response."""', '"""Other words."""', False),
        ("banks: Banks, data: Data) -> list[Example]:\n", "banks: Any, data: Any) -> Any:  # why\n", False),
        ("    traits = list(banks)\n", "    unused = 0\n    traits = list(banks)\n", True),
        ('_example(item, "positive")', '_example(item, "negative")', True),
        ("place % 2", "place % 3", True),
        ('"control-benign": Kind(control_benign, "bank")', '"control-benign": Kind(demonstration, "bank")', True),
    ],
)
def test_only_code_that_may_change_results_counts(tmp_path: Path, old: str, new: str, differs: bool) -> None:
    """Words and types are free, in a copy of the package."""
    package = tmp_path / "propgen"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / "regime.py").read_text()
    assert old in text
    (package / "regime.py").write_text(text.replace(old, new))
    assert (source("dataset", package) != source("dataset")) is differs


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
