"""Gates: which finetunes did what they should before anything is concluded from them.

A failed finetune is missing and not zero: in the matrix of others a collapsed model has large effects on everything. A
gate fails only where the data leave no doubt; in doubt it is `inconclusive`, and the row stays, marked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from propgen.files import replace
from propgen.inference import Effects, effects
from propgen.plan import PROBE
from propgen.scores import Array, Mask, means
from propgen.sheet import Sheet, sheets
from propgen.tables import GATES, check

PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
TOOK, ANSWERS, COHERENT, INTACT, CAPABLE = "took", "answers", "coherent", "not collapsed", "capable"
DIRECTION = {"demonstration": 1.0, "negated": -1.0}
"""Regimes whose own trait has to move, and whereto."""
FEWEST = 8
"""Families of which one half can be reserved for a gate."""
SURE = 0.99
"""A row fails `took` only where one with a worthwhile own effect would have passed with this probability."""
NEUTRAL, CAPABILITY = "neutral", "capability"
"""The probes: neutral texts, and questions that have a right answer."""


@dataclass(frozen=True)
class Rules:
    """The gates' limits, as in `config.Gates`."""

    level: float
    floor: float
    worth: float
    answers: float
    collapse: float
    perplexity: float
    loss: float


Key = tuple[str, str, str]
"""Base model, protocol and context."""
Row = dict[str, Any]


class Bound(NamedTuple):
    """What a gate saw of one row: a value with its bounds, and what these must not be beyond."""

    value: float
    low: float
    high: float
    limit: float
    seeds: int
    items: int


def gates(items: pl.DataFrame, control: str, rules: Rules) -> pl.DataFrame:
    """Return a row per base model, treatment and gate, for a gate of answers or scores also per protocol."""
    found = sheets(items, control)
    chance = set(items.filter(pl.col("p_positive").is_not_null())["protocol"]) if "p_positive" in items.columns else ()
    rows = judge({key: sheet for key, sheet in found.items() if key[2] != PROBE}, rules, chance)
    for sheet in (sheet for key, sheet in found.items() if key[2] == PROBE):
        rows += [*_coherent(sheet, items, control, rules), *_capable(sheet, rules)]
    frame = pl.DataFrame(rows, schema=GATES, orient="row").sort("model", "treatment", maintain_order=True)
    return check(frame, GATES, "gates.parquet")


def judge(found: Mapping[Key, Sheet], rules: Rules, chance: Collection[str]) -> list[Row]:
    """Return what the matrix's own sheets say of their rows. chance: protocols whose answers can be mere luck."""
    rows = [row for sheet in found.values() if reserved(sheet, found).any() for row in _took(sheet, found, rules)]
    for model, protocol in dict.fromkeys(key[:2] for key in found):
        views = [sheet for key, sheet in found.items() if key[:2] == (model, protocol)]
        rows += _answers(views, rules)
        rows += _intact(views, rules) if protocol in chance else []
    return rows


def _row(sheet: Sheet, place: int, gate: str, bound: Bound, verdict: str, protocol: str | None) -> Row:
    row = {name: sheet.rows[place][name] for name in ("model", "treatment", "trained", "regime")}
    numbers = [None if not np.isfinite(x) else float(x) for x in bound[:3]]
    about = {"protocol": protocol, "gate": gate, "verdict": verdict, "value": numbers[0], "low": numbers[1]}
    return row | about | {"high": numbers[2], "limit": bound.limit, "n_seeds": bound.seeds, "n_items": bound.items}


def above(bound: Bound) -> str:
    """Return the verdict of a gate whose value must not be below its limit."""
    if not (np.isfinite(bound.low) and np.isfinite(bound.high)):
        return INCONCLUSIVE
    return PASSED if bound.low >= bound.limit else FAILED if bound.high < bound.limit else INCONCLUSIVE


def below(bound: Bound) -> str:
    """Return the verdict of a gate whose value must not be above its limit."""
    return above(bound._replace(low=-bound.high, high=-bound.low, limit=-bound.limit))


# -- took ----------------------------------------------------------------------------------------------------------


def reserved(sheet: Sheet, keys: Iterable[Key]) -> Mask:
    """Return which treatments' own effect is judged on a reserved half of this sheet's families.

    It is judged in one context: that of its training set's name (`easy`), else `id`, else the first one. keys: of all
    sheets.
    """
    there = [context for model, protocol, context in keys if (model, protocol) == sheet.key[:2] and context != PROBE]
    usual = "id" if "id" in there else there[0]
    place = [
        row["regime"] in DIRECTION
        and own >= 0
        and len(np.unique(sheet.scores.families[own])) >= FEWEST
        and sheet.context == (row["variant"] if row["variant"] in there else usual)
        for row, own in zip(sheet.rows, sheet.own, strict=True)
    ]
    return np.array(place, dtype=bool)


def _took(sheet: Sheet, keys: Iterable[Key], rules: Rules) -> list[Row]:
    """Judge the own effects on the reserved half of the families; the matrix shows those of the other half."""
    half = sheet.families(1)
    found = effects(half.scores, 2 * rules.level - 1)
    rows: list[Row] = []
    for i in np.flatnonzero(reserved(sheet, keys)):
        place, sign = (i, sheet.own[i]), DIRECTION[sheet.rows[i]["regime"]]
        value, low, high, se, df, p = (float(part[place]) for part in _of(found))
        low, high = sorted((sign * low, sign * high))
        items = half.scores.values[sheet.own[i]].shape[1]
        bound = Bound(sign * value, low, high, rules.floor, int(found.seeds[place]), items)
        rows.append(_row(sheet, int(i), TOOK, bound, _taken(bound, se, df, np.isfinite(p), rules), sheet.protocol))
    return rows


def _of(found: Effects) -> tuple[Array, ...]:
    return found.effect, found.low, found.high, found.se, found.df, found.p


def _taken(bound: Bound, se: float, df: float, tested: bool, rules: Rules) -> str:
    """Return the verdict on an own effect, which has to be above the floor beyond doubt.

    Where even a worthwhile effect would often miss that, nothing is held against the row.
    """
    if not tested:
        return INCONCLUSIVE
    if bound.low > bound.limit:
        return PASSED
    needed = (stats.t.ppf(rules.level, df) + stats.norm.ppf(SURE)) * se
    return FAILED if needed <= rules.worth - rules.floor else INCONCLUSIVE


# -- answers, collapse ---------------------------------------------------------------------------------------------


def _answers(views: list[Sheet], rules: Rules) -> list[Row]:
    """Judge the share of answers that could be scored, as a share of the control's, over all contexts."""
    first = views[0]
    scored, asked = np.sum([_counts(sheet) for sheet in views], axis=0)
    rows: list[Row] = []
    for i in first.trained:
        reference = first.scores.reference[i]
        k, n = float(scored[i]), float(asked[i])
        if reference < 0 or not n or not asked[reference] or not scored[reference]:
            continue
        limit = rules.answers * float(scored[reference] / asked[reference])
        low = float(stats.beta.ppf(1 - rules.level, k, n - k + 1)) if k else 0.0  # Clopper & Pearson 1934
        high = float(stats.beta.ppf(rules.level, k + 1, n - k)) if k < n else 1.0
        seeds = int(first.scores.members[i].sum())
        bound = Bound(k / n, low, high, limit, seeds, int(n / max(seeds, 1)))
        rows.append(_row(first, int(i), ANSWERS, bound, above(bound), first.protocol))
    return rows


def _counts(sheet: Sheet) -> Array:
    """Return how many items each treatment's subjects scored and were asked, 2 x treatments."""
    scored = np.stack([np.isfinite(values).sum(axis=1) for values in sheet.scores.values]).sum(axis=0)
    members = sheet.scores.members
    return np.stack([members @ scored.astype(float), members @ sheet.asked.sum(axis=1).astype(float)])


def _intact(views: list[Sheet], rules: Rules) -> list[Row]:
    """Judge 1 - lambda, lambda being how far answers are mixed with the chance answer.

    1 - lambda = cov(treated, base) / cov(control, base) over items, pooled over evaluations; its error is that of a
    ratio estimator over families (Cochran 1977).
    """
    first = views[0]
    base = next((i for i, fixed in enumerate(first.scores.fixed) if fixed), None)
    rows: list[Row] = []
    for i in first.trained if base is not None else ():
        reference = int(first.scores.reference[i])
        pairs = np.vstack([_products(sheet, int(i), reference, base or 0) for sheet in views])
        over, under = pairs.sum(axis=0)
        if reference < 0 or len(pairs) < FEWEST or under <= 0:
            continue
        ratio, count = over / under, len(pairs)
        error = np.sqrt(count / (count - 1) * ((pairs[:, 0] - ratio * pairs[:, 1]) ** 2).sum()) / under
        half = float(stats.t.ppf(rules.level, count - 1)) * error
        seeds = int(first.scores.members[i].sum())
        bound = Bound(ratio, ratio - half, ratio + half, 1 - rules.collapse, seeds, count)
        rows.append(_row(first, int(i), INTACT, bound, above(bound), first.protocol))
    return rows


def _products(sheet: Sheet, treated: int, control: int, base: int) -> Array:
    """Return families x 2: sums of (treated - mean)(base - mean) and of the control's, over a family's items."""
    found: list[Array] = []
    for values, families in zip(sheet.scores.values, sheet.scores.families, strict=True):
        arms = [means(values[sheet.scores.arm == arm], axis=0) for arm in (treated, control, base)]
        table = np.stack(arms)
        seen = np.isfinite(table).all(axis=0)
        if seen.sum() < 2:
            continue
        table = table[:, seen] - table[:, seen].mean(axis=1, keepdims=True)
        names, place = np.unique(families[seen], return_inverse=True)
        sums = [np.bincount(place, table[k] * table[2], len(names)) for k in (0, 1)]
        found.append(np.stack(sums, axis=1).astype(float))
    return np.vstack(found) if found else np.empty((0, 2))


# -- probes --------------------------------------------------------------------------------------------------------


def _coherent(sheet: Sheet, items: pl.DataFrame, control: str, rules: Rules) -> list[Row]:
    """Judge the perplexity of neutral texts, as a ratio to the control's."""
    if NEUTRAL not in sheet.traits:
        return []
    texts = items.filter(model=sheet.model, protocol=sheet.protocol, context=PROBE, evaluated=NEUTRAL)
    nats = texts.with_columns(score=-pl.col("logprob_positive") / pl.col("tokens_positive"))
    neutral = sheets(nats, control)[sheet.key]
    return _probe(neutral, NEUTRAL, COHERENT, rules, np.log(rules.perplexity), np.exp)


def _capable(sheet: Sheet, rules: Rules) -> list[Row]:
    """Judge how much of the control's share of right answers is lost."""
    if CAPABILITY not in sheet.traits:
        return []
    right = sheet.transform(lambda values: np.where(np.isfinite(values), -(values > 0).astype(float), np.nan))
    return _probe(right, CAPABILITY, CAPABLE, rules, rules.loss, float)


def _probe(sheet: Sheet, trait: str, gate: str, rules: Rules, limit: float, shown: Any) -> list[Row]:
    """Judge a probe's effects, which must not be above a limit. shown: from a difference to what the table shows."""
    column = sheet.traits.index(trait)
    found = effects(sheet.scores, 2 * rules.level - 1)
    rows: list[Row] = []
    for i in sheet.trained:
        if sheet.scores.reference[i] < 0:
            continue
        value, low, high = (float(part[i, column]) for part in (found.effect, found.low, found.high))
        seeds, items = int(found.seeds[i, column]), sheet.scores.values[column].shape[1]
        verdict = below(Bound(value, low, high, limit, seeds, items))
        value, low, high, most = (float(shown(x)) for x in (value, low, high, limit))
        rows.append(_row(sheet, int(i), gate, Bound(value, low, high, most, seeds, items), verdict, None))
    return rows


# -- all of them ---------------------------------------------------------------------------------------------------


def verdicts(found: pl.DataFrame) -> dict[tuple[str, str, str], str]:
    """Return base model, treatment and protocol to what its gates say together, as in `failed: took, capable`."""
    protocols = found["protocol"].drop_nulls().unique(maintain_order=True).to_list()
    result: dict[tuple[str, str, str], str] = {}
    for (model, treatment), part in found.group_by("model", "treatment", maintain_order=True):
        for protocol in protocols:
            rows = part.filter(pl.col("protocol").is_null() | (pl.col("protocol") == protocol))
            if not rows.is_empty():
                result[str(model), str(treatment), protocol] = _together(rows)
    return result


def _together(rows: pl.DataFrame) -> str:
    for verdict in (FAILED, INCONCLUSIVE):
        if names := rows.filter(verdict=verdict)["gate"].to_list():
            return f"{verdict}: {', '.join(names)}"
    return PASSED


def attrition(found: pl.DataFrame) -> pl.DataFrame:
    """Return how many rows passed, were in doubt and fell at each gate, by base model and protocol."""
    return found.group_by("model", "protocol", "gate", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("n_rows"),
        *((pl.col("verdict") == name).sum().cast(pl.Int64).alias(name) for name in (PASSED, INCONCLUSIVE, FAILED)),
    )


def write(folder: Path, found: pl.DataFrame) -> None:
    """Write the gates and their attrition, each replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in {"gates": found, "attrition": attrition(found)}.items():
        replace(folder / f"{name}.parquet", frame.write_parquet)
