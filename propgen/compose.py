"""Composing: from `conf/` and overrides to typed configs, with errors that a user can act on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from propgen import config as schema
from propgen.config import SLUG, Config, Elements
from propgen.errors import InputError, nearest
from propgen.limits import check_values

BATCH = 32
"""Elements that Hydra composes at once: its time grows with the square of their number."""
GROUPS = ("model", "trait", "regime", "protocol")
"""Config groups whose elements an experiment names in its lists."""


@dataclass(frozen=True)
class Project:
    """A checkout: the folder that holds `Snakefile` and `conf/`."""

    root: Path

    @property
    def conf(self) -> Path:
        """The folder of all configs and banks."""
        return self.root / "conf"

    @property
    def results(self) -> Path:
        """The folder of everything that is made."""
        return self.root / "results"

    @property
    def state(self) -> Path:
        """The folder of what propgen remembers between runs: the pinned plan, and content of local models."""
        return self.root / ".snakemake" / "propgen"

    def options(self, group: str) -> list[str]:
        """Return the names that a config group offers."""
        return sorted(path.stem for path in (self.conf / group).glob("*.yaml"))


def find_project(start: Path | None = None) -> Project:
    """Return the checkout around `start` (default: the working directory)."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "Snakefile").is_file() and (folder / "conf" / "config.yaml").is_file():
            return Project(folder)
    raise InputError(f"{here} is not inside a propgen checkout (a folder with Snakefile and conf/); go there first")


@dataclass(frozen=True)
class Composition:
    """A composed config with the names of the group options that were chosen for it."""

    config: Config
    chosen: Mapping[str, str]
    overrides: tuple[str, ...]


def compose(project: Project, overrides: Sequence[str]) -> Composition:
    """Compose `conf/config.yaml` with Hydra overrides.

    Raises InputError for an unknown experiment, group option or key, a wrong type, a value that cannot be, or a
    malformed override.
    """
    from omegaconf import OmegaConf

    for override in overrides:
        _check_override(project, override)
    with _hydra(project, overrides) as hydra_compose:
        composed = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = {key: str(value) for key, value in composed.hydra.runtime.choices.items() if value}
        names = [item.name for item in fields(Config)]
        typed = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.masked_copy(composed, names))
        config = cast(Config, OmegaConf.to_object(typed))
    check_values(config)
    chosen = {group: choices[group] for group in (*GROUPS, "experiment") if group in choices}
    return Composition(config, chosen, tuple(overrides))


def compose_elements(project: Project, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Compose every named element of every group, once each; returns group to name to typed config."""
    found: dict[str, dict[str, Any]] = {group: {} for group in names}
    for group, wanted in names.items():
        known = project.options(group) if wanted else []
        for name in wanted:
            _check_option(group, name, known)
        for start in range(0, len(wanted), BATCH):
            found[group] |= _compose_batch(project, group, wanted[start : start + BATCH])
    return found


def _compose_batch(project: Project, group: str, names: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    # A name may hold dots, which Hydra reads as nesting, so each element is composed under a plain key.
    overrides = [f"+{group}@{group}.e{i}={name}" for i, name in enumerate(names)]
    with _hydra(project, overrides) as hydra_compose:
        elements = cast(Elements, OmegaConf.to_object(hydra_compose("elements", overrides=overrides)))
    return {name: getattr(elements, group)[f"e{i}"] for i, name in enumerate(names)}


@contextmanager
def _hydra(project: Project, overrides: Sequence[str]) -> Iterator[Any]:
    """Yield Hydra's compose function for a project; its errors come out as InputError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    registry = ConfigStore.instance()
    registry.store(name="schema", node=Config)
    registry.store(name="elements", node=Elements)
    try:
        with initialize_config_dir(str(project.conf.resolve()), version_base="1.3"):
            yield hydra_compose
    except (HydraException, OmegaConfBaseException, YAMLError, AssertionError, ValueError) as error:
        raise InputError(_explain(project, error, overrides)) from error


def _check_override(project: Project, override: str) -> None:
    key, equals, value = (part.strip() for part in override.partition("="))
    if override.startswith(("+", "~")):
        raise InputError(f"override '{override}': keys cannot be added or removed, only set; write key=value")
    if not (key and equals):
        raise InputError(f"override '{override}': expected key=value")
    if re.match(r"hydra\b", key):
        raise InputError(f"override '{override}': Hydra's own settings are fixed here")
    if re.fullmatch(r"\w+", key) and (project.conf / key).is_dir() and not value.startswith("{"):
        _check_option(key, value.strip("\"'"), project.options(key))


def _check_option(group: str, name: str, known: Sequence[str]) -> None:
    if not re.fullmatch(SLUG, name):
        raise InputError(f"{group} '{name}': a name must match {SLUG}, since it becomes part of a path")
    if name not in known:
        raise InputError(f"unknown {group} '{name}' (conf/{group}/{name}.yaml does not exist); {nearest(name, known)}")


def _explain(project: Project, error: BaseException, overrides: Sequence[str]) -> str:
    """Turn an error of Hydra, OmegaConf or PyYAML into one sentence that names file or key, and what to do."""
    text = " ".join(str(error).split())
    causes = f"{text} {' '.join(str(error.__cause__ or '').split())}"
    place = _place(project, error, causes, overrides)
    if problem := getattr(error, "problem", None):
        return f"{place}: not valid YAML: {problem}"
    if absent := re.search(r"Could not find '([\w-]+)/([^']+)'", text):
        group, name = absent.groups()
        known = nearest(name, project.options(group))
        return f"unknown {group} '{name}' (conf/{group}/{name}.yaml does not exist); {known}"
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", causes):
        key, owner = unknown.groups()
        if key == "experiment" and place.startswith("conf/experiment/"):
            return f"{place}: its first line must be '# @package _global_'"
        return f"{place}: unknown key '{key}'; {nearest(key, _keys(owner))}"
    if missing := re.search(r"missing mandatory value: (\S+)", causes):
        return f"{place}: '{missing.group(1)}' is missing; add it"
    if wrong := re.search(r"(?:.*composing config: |Error merging override \S+ )?(.*) full_key: (\S+)", causes):
        return f"{place}: {_own(wrong.group(2))}: {wrong.group(1).rstrip('.')}; {_expected(wrong.group(2))}"
    if isinstance(error, AssertionError):
        return f"{place}: sets a key of a group of which no option is chosen; choose one first, as in trait=honesty"
    return f"{place}: {text}"


def _place(project: Project, error: BaseException, causes: str, overrides: Sequence[str]) -> str:
    """Return where an error arose: a file in conf/, or an override."""
    if mark := getattr(error, "problem_mark", None):  # of a file that is not YAML
        return f"{Path(mark.name).relative_to(project.root.resolve())}:{mark.line + 1}"
    if found := re.search(r"In '([^']+)'", causes):
        return f"conf/{found.group(1)}.yaml"
    named = re.search(r"(?:override '?|full_key: )([^'\s=]+)", causes)
    key = named.group(1).rstrip(".") if named else ""
    for override in overrides:
        if override.partition("=")[0] == key or override in causes or override == getattr(error, "override", None):
            return f"override '{override}'"
    return _file(key, overrides) or f"overrides {list(overrides)}"


def _file(key: str, overrides: Sequence[str]) -> str | None:
    """Return the file that ought to set a key: its group's option, or else the experiment."""
    chosen = dict(override.lstrip("+").split("=", 1) for override in overrides)
    group, _, rest = key.partition(".")
    element = chosen.get(f"{group}@{group}.{rest.partition('.')[0]}", chosen.get(group))
    if element and rest:
        return f"conf/{group}/{element}.yaml"
    return f"conf/experiment/{chosen['experiment']}.yaml" if key and "experiment" in chosen else None


def _own(key: str) -> str:
    """Return a key as its file spells it: without the plain name under which an element is composed."""
    return re.sub(r"^\w+\.e\d+\.", "", key)


def _keys(owner: str) -> list[str]:
    node = getattr(schema, owner, None)
    return [item.name for item in fields(node)] if is_dataclass(node) else []


def _expected(key: str) -> str:
    """Return the type that the schema wants at a dotted key, in words."""
    node: Any = Config
    kind = ""
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        if node in (dict[str, Any], None) or not is_dataclass(node):
            continue
        kind = next((str(item.type) for item in fields(node) if item.name == part), kind)
        node = getattr(schema, kind.split(" ")[0], None)
    return f"expected {kind}" if kind else "expected another type"


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder` or, where it does not exist, in its nearest parent."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file; choose another folder, as in store=/path/to/folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write in {existing}; choose another folder, as in store=/path/to/folder")
