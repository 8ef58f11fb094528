"""Which values settings may have, and that the lists of them agree with the code that acts on them."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from conftest import ROOT
from planning import REAL, planner

from propgen.compose import compose
from propgen.config import Config, Generation
from propgen.errors import InputError
from propgen.limits import AT_LEAST_ONE, CHOICES, FORMATS, INTERVALS, check_generation, check_values
from propgen.plan import GENERATING, PROTOCOLS
from propgen.regime import KINDS


def literal(module: str, name: str) -> Any:
    """Return the value, or the keys of the dictionary, that a module assigns; the module is not imported."""
    for node in ast.parse((ROOT / f"propgen/{module}.py").read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = node.value  # type: ignore[attr-defined]
            if isinstance(value, ast.Dict):
                return tuple(ast.literal_eval(key) for key in value.keys if key)
            return ast.literal_eval(value)
    raise AssertionError(f"{module}.py has no {name}")


@pytest.fixture(scope="module")
def config() -> Config:
    """Return the composed quickstart."""
    return compose(REAL, []).config


def with_value(config: Any, key: str, value: object) -> Any:
    """Return the config with another value at a dotted key."""
    group, _, rest = key.partition(".")
    changed = with_value(getattr(config, group), rest, value) if rest else value
    return replace(config, **{group: changed})


@pytest.mark.parametrize(
    ("known", "module", "name"),
    [
        (CHOICES["training.method"], "training", "METHODS"),
        (CHOICES["training.schedule"], "trainer", "SCHEDULES"),
        (FORMATS, "figures", "STABLE"),
        (tuple({*PROTOCOLS} - {*GENERATING}), "scoring", "SCORERS"),
        (GENERATING, "rule", "SCORERS"),
    ],
)
def test_what_planning_lets_through_the_stage_can_do(known: tuple[str, ...], module: str, name: str) -> None:
    """Planning must not import torch, so it has lists of its own; these are the stages' lists."""
    assert sorted(known) == sorted(literal(module, name))


def test_every_option_in_conf_is_of_a_known_kind() -> None:
    """Engines, regimes and protocols in conf/ are those that are implemented."""
    assert set(REAL.options("engine")) <= set(CHOICES["engine.name"])
    assert set(REAL.options("protocol")) == set(PROTOCOLS)
    assert {planner(REAL).element("regime", name).kind for name in REAL.options("regime")} == set(KINDS)


def test_every_number_of_the_schema_has_a_limit(config: Config) -> None:
    """A new number in training, engine, data, analysis, style or execution needs a line in limits.py."""
    limited = {*AT_LEAST_ONE, *INTERVALS}

    def look(node: Any, place: str) -> None:
        for item in fields(node):
            if is_dataclass(getattr(node, item.name)):
                look(getattr(node, item.name), f"{place}{item.name}.")
            elif item.type in ("int", "float") and place:
                assert f"{place}{item.name}" in limited

    look(config, "")


@pytest.mark.parametrize("key", AT_LEAST_ONE)
def test_counts_are_at_least_one(config: Config, key: str) -> None:
    """One is fine, none is not."""
    check_values(with_value(config, key, 1))
    with pytest.raises(InputError, match=f"{key}=0: expected at least 1"):
        check_values(with_value(config, key, 0))


@pytest.mark.parametrize("key", INTERVALS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.1])
def test_numbers_are_finite_and_not_negative(config: Config, key: str, value: float) -> None:
    """NaN would even break the digest; the message names the key."""
    with pytest.raises(InputError, match=f"{key}="):
        check_values(with_value(config, key, value))


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("training.dropout", (0.0, 0.5), (1.0,)),
        ("training.warmup", (0.0, 1.0), (1.01,)),
        ("training.learning_rate", (1e-9, 10.0), (0.0,)),
        ("analysis.alpha", (0.01,), (0.0, 1.0)),
    ],
)
def test_the_ends_of_an_interval_are_in_or_out(
    config: Config, key: str, good: tuple[float, ...], bad: tuple[float, ...]
) -> None:
    """A rate of 0 trains nothing, a warmup over all steps is odd but possible."""
    for value in good:
        check_values(with_value(config, key, value))
    for value in bad:
        with pytest.raises(InputError, match=key):
            check_values(with_value(config, key, value))


@pytest.mark.parametrize("key", CHOICES)
def test_an_unknown_choice_is_answered_with_the_known_ones(config: Config, key: str) -> None:
    """The message lists what may stand there."""
    with pytest.raises(InputError, match=f"{key}=other: expected one of .*{CHOICES[key][-1]}"):
        check_values(with_value(config, key, "other"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0}, "generation.samples=0: expected 1 to 1000"),
        ({"max_tokens": 0}, "generation.max_tokens=0: expected 1 to 512"),
        ({"max_tokens": 513}, "generation.max_tokens=513"),
        ({"temperature": -0.1}, "generation.temperature=-0.1"),
        ({"temperature": float("nan")}, "generation.temperature=nan"),
        ({"temperature": float("inf")}, "generation.temperature=inf"),
        ({"temperature": 0.0}, "gives the same response each time; set samples: 1"),
        ({"seed": -1}, "seed -1: expected 0 or more"),
    ],
)
def test_generation_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    """The message names the file and the key; the ends of the ranges are fine."""
    check_generation("x.yaml", Generation(samples=1, max_tokens=512, temperature=0.0))
    with pytest.raises(InputError, match=said):
        check_generation("x.yaml", Generation(**settings))
