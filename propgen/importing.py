"""Imports: a matrix that others have measured, brought into the tables that the analysis works on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from propgen.config import SLUG, Analysis
from propgen.digest import digest, identity
from propgen.errors import InputError
from propgen.items import KEYS, Items
from propgen.plan import BASE, Evaluation, Plan, Subject, Treatment

NOTHING = ("N/A", "NA", "", "none", "base")
"""What stands for no finetuning data in a base model's row."""
PROTOCOL, CONTEXT, REGIME = "imported", "id", "imported"
SCORE, FLAG = "p_", "emerged_"


def read_forecast(path: Path) -> Items:
    """Read a matrix in the layout of AlignmentForecastBench (arXiv 2609.35805).

    A row per finetune, with `ft_dataset`, `target_model`, and a column `p_<trait>` for each trait (the share of answers
    that show it); `emerged_<trait>` is left aside. A base model's row has N/A for its dataset. There are no seeds, no
    items and no controls. Raises InputError for another layout.
    """
    try:
        frame = pl.read_csv(path, infer_schema_length=None, glob=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name the CSV file to import") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not a CSV table ({error}); expected a header and a row per finetune") from error
    for name in ("ft_dataset", "target_model"):
        if name not in frame.columns:
            raise InputError(f"{path}: no column '{name}'; expected ft_dataset, target_model and p_<trait> columns")
    traits = [name.removeprefix(SCORE) for name in frame.columns if name.startswith(SCORE)]
    if not traits:
        raise InputError(f"{path}: no column begins with '{SCORE}'; expected one p_<trait> column for each trait")
    rows = [row for number, line in enumerate(frame.to_dicts(), 2) for row in _rows(path, number, line, traits)]
    table = pl.DataFrame(rows, schema={**KEYS, "item": pl.String, "family": pl.String, "score": pl.Float64})
    _check_unique(path, table)
    return Items(table, {"control": BASE, "missing": [], "execution": ["imported"]})


def _rows(path: Path, number: int, line: Mapping[str, Any], traits: list[str]) -> list[dict[str, object]]:
    """Return a row for each trait. The own trait is the one that the dataset is named after, if there is one."""
    data = str(line["ft_dataset"] if line["ft_dataset"] is not None else "").strip()
    base = data in NOTHING
    named = [_slug(trait) for trait in traits]
    own = max((t for t in named if _slug(data).startswith(t)), key=len, default=_slug(data))
    model, treatment = _slug(str(line["target_model"])), BASE if base else _slug(data)
    if not (model and treatment):
        raise InputError(f"{path}:{number}: 'target_model' and 'ft_dataset' need letters or digits to become names")
    about: dict[str, object] = {"model": model, "trained": None if base else own, "treatment": treatment}
    about |= {"regime": BASE if base else REGIME, "variant": None, "dose": None, "seed": None if base else 0}
    rows: list[dict[str, object]] = []
    for trait, name in zip(traits, named, strict=True):
        column = {"evaluated": name, "protocol": PROTOCOL, "context": CONTEXT}
        column["evaluation"] = f"{name}.{PROTOCOL}.{CONTEXT}"
        score = _number(path, number, f"{SCORE}{trait}", line[f"{SCORE}{trait}"])
        rows.append({**about, **column, "item": "all", "family": "all", "score": score})
    return rows


def _number(path: Path, number: int, column: str, value: object) -> float | None:
    if value is None or str(value).strip() in NOTHING:
        return None
    try:
        found = float(str(value))
    except ValueError:
        found = float("nan")
    if not 0 <= found <= 100:
        raise InputError(f"{path}:{number}: {column} is '{value}'; expected a share from 0 to 1, or from 0 to 100")
    return found


def _slug(text: str) -> str:
    found = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return found if re.fullmatch(SLUG, found) else ""


def _check_unique(path: Path, table: pl.DataFrame) -> None:
    finetunes = table.select("model", "treatment", "evaluated")
    twice = finetunes.filter(finetunes.is_duplicated())
    if not twice.is_empty():
        model, treatment, _ = twice.row(0)
        raise InputError(f"{path}: '{treatment}' on '{model}' stands there twice; keep one row of each")
    for (model,), part in table.group_by("model", maintain_order=True):
        if part.filter(treatment=BASE).is_empty():
            raise InputError(f"{path}: '{model}' has no base row (ft_dataset N/A), which effects are measured against")


def plan_of(items: Items, name: str, analysis: Analysis) -> Plan:
    """Return the plan of an imported matrix: its rows and columns, with nothing to run."""
    rows = items.rows
    labels = rows.select("treatment", "regime", "trained").unique("treatment", keep="first", maintain_order=True)
    columns = rows.select("evaluation", "evaluated", "protocol", "context").unique(maintain_order=True)
    subjects = rows.select("model", "treatment").unique(maintain_order=True)
    label = "share of answers that show the trait"
    return Plan(
        name=name,
        experiment=name,
        store="",
        treatments=tuple(Treatment(t, r, trained) for t, r, trained in labels.iter_rows()),
        models=(),
        datasets=(),
        adapters=(),
        subjects=tuple(Subject(f"{m}/{t}", m, t, 0, digest([m, t]), "", ()) for m, t in subjects.iter_rows()),
        evaluations=tuple(
            Evaluation(e, t, p, c, digest([e]), {"kind": PROTOCOL, "config": {}}, 1, "share of answers", label)
            for e, t, p, c in columns.iter_rows()
        ),
        analysis=identity(analysis),
        style={"formats": ["png"]},
        control=BASE,
    )
