"""Limits: which values the settings of the schema may have, checked before anything is planned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from propgen.config import SLUG, Config, Finetuned, Generation
from propgen.device import DEVICES, DTYPES
from propgen.errors import InputError, nearest

CHOICES: Mapping[str, Sequence[str]] = {
    "training.method": ("lora", "full"),
    "training.schedule": ("linear", "cosine", "constant"),
    "training.dtype": DTYPES,
    "analysis.estimand": ("new-items", "fixed-items"),
    "engine.name": ("transformers",),
    "engine.dtype": DTYPES,
    "execution.device": DEVICES,
}
"""Settings that have one of a few values."""

FORMATS = ("png", "svg", "pdf")
"""What `style.formats` may list."""

AT_LEAST_ONE = (
    *("data.train_items", "data.test_items", "data.far_items", "data.rule_items", "data.rule_far_items"),
    *("training.rank", "training.alpha", "training.epochs", "training.batch", "training.max_tokens"),
    *("style.dpi", "execution.threads", "execution.micro_batch", "execution.token_budget"),
)
"""Counts."""

INTERVALS: Mapping[str, tuple[str, float, float, str]] = {
    "training.learning_rate": ("(", 0, math.inf, ")"),
    "training.clip": ("(", 0, math.inf, ")"),
    "training.weight_decay": ("[", 0, math.inf, ")"),
    "training.dropout": ("[", 0, 1, ")"),
    "training.warmup": ("[", 0, 1, "]"),
    "analysis.confidence": ("(", 0, 1, ")"),
    "analysis.alpha": ("(", 0, 1, ")"),
    "analysis.smallest": ("(", 0, math.inf, ")"),
    "analysis.sd_floor": ("(", 0, math.inf, ")"),
    "analysis.gates.level": ("(", 0.5, 1, ")"),
    "analysis.gates.floor": ("[", 0, math.inf, ")"),
    "analysis.gates.worth": ("(", 0, math.inf, ")"),
    "analysis.gates.answers": ("[", 0, 1, "]"),
    "analysis.gates.collapse": ("[", 0, 1, "]"),
    "analysis.gates.perplexity": ("(", 1, math.inf, ")"),
    "analysis.gates.loss": ("[", 0, 1, "]"),
    "style.width": ("(", 0, math.inf, ")"),
    "style.height": ("(", 0, math.inf, ")"),
    "style.scale": ("(", 0, math.inf, ")"),
    "execution.checkpoint_seconds": ("[", 0, math.inf, ")"),
}
"""Lowest and highest value; a round bracket leaves out the value beside it, and so all that is not a finite number."""

RESERVED = ("store", "imported")
"""Folders of `results/` that are no experiment's."""

LONGEST = 512
"""Tokens of the longest response: patterns search responses, and the time of a bad one grows fast with their length."""

SEEDS = 2**32
"""How many seeds there are: numpy takes no larger ones."""


def check_values(config: Config) -> None:
    """Raise InputError for the first setting whose value cannot be."""
    for key in (*CHOICES, *AT_LEAST_ONE, *INTERVALS):
        _check_value(key, _get(config, key))
    for kind in config.style.formats:
        if kind not in FORMATS:
            raise InputError(f"style.formats: unknown format '{kind}'; {nearest(kind, FORMATS)}")
    if not config.style.formats:
        raise InputError(f"style.formats is empty; name at least one of {', '.join(FORMATS)}")


def check_finetuned(place: str, finetuned: Finetuned) -> None:
    """Raise InputError for the first setting of a base model's own finetune whose value cannot be.

    place: what stands before the key in the message.
    """
    if finetuned.items < 1:
        raise InputError(f"{place}.items={finetuned.items}: expected at least 1")
    if finetuned.training.method != "full":
        raise InputError(f"{place}.training.method={finetuned.training.method}: expected full; leave it out")
    check_seed(finetuned.seed, f"{place}.")
    for key in (*CHOICES, *AT_LEAST_ONE, *INTERVALS):
        group, _, name = key.partition(".")
        if group == "training":
            _check_value(key, getattr(finetuned.training, name), f"{place}.")


def _check_value(key: str, value: Any, place: str = "") -> None:
    """Raise InputError unless a setting has one of its few values, counts something, or lies in its interval."""
    if key in CHOICES and value not in CHOICES[key]:
        raise InputError(f"{place}{key}={value}: expected one of {', '.join(CHOICES[key])}")
    if key in AT_LEAST_ONE and value < 1:
        raise InputError(f"{place}{key}={value}: expected at least 1")
    if key in INTERVALS:
        opening, low, high, closing = INTERVALS[key]
        above = value > low or (opening == "[" and value == low)
        below = value < high or (closing == "]" and value == high)
        if not (above and below):
            raise InputError(f"{place}{key}={value}: expected a number in {opening}{low:g}, {high:g}{closing}")


def check_lists(config: Config) -> None:
    """Raise InputError unless an experiment can be planned from its name and lists: none is empty or repeats itself."""
    if not re.fullmatch(SLUG, config.name):
        raise InputError(f"name: '{config.name}' must match {SLUG}, since it becomes a folder in results/")
    if config.name in RESERVED:
        raise InputError(f"name: results/{config.name}/ is not for experiments; choose another name")
    for key in ("models", "traits", "trained", "evaluated", "regimes", "protocols", "contexts", "seeds"):
        more = {"trained": config.variants, "evaluated": config.columns}.get(key, [])
        if getattr(config, key) or not more:
            check_list(key, getattr(config, key))
    _check_columns(config.columns)
    check_unique("probes", config.probes)
    if config.data.probe_items is not None and config.data.probe_items < 1:
        raise InputError(f"data.probe_items={config.data.probe_items}: expected at least 1")
    check_unique("variants", config.variants)
    for name in config.variants:
        trait, _, variant = name.rpartition(".")
        if not (trait and re.fullmatch(SLUG, variant)):
            raise InputError(f"variants: '{name}' is no trait and training set; write both, as in honesty.b")
    for key in ("regimes", "seeds"):
        if not (values := getattr(config.controls, key)):
            raise InputError(f"controls.{key} is empty; effects are measured against at least one control finetune")
        check_unique(f"controls.{key}", values)


def _check_columns(names: Sequence[str]) -> None:
    check_unique("columns", names)
    for name in names:
        parts = name.rsplit(".", 2)
        if len(parts) != 3 or not all(re.fullmatch(SLUG, part) for part in parts):
            raise InputError(
                f"columns: '{name}' is no trait, protocol and context; write all three, as in formality.rule.id"
            )


def check_generation(place: str, settings: Generation) -> None:
    """Raise InputError for settings of a protocol's responses that cannot be. place: where they stand."""
    for key, most in (("samples", 1000), ("max_tokens", LONGEST)):
        if not 1 <= (value := getattr(settings, key)) <= most:
            raise InputError(f"{place}: generation.{key}={value}: expected 1 to {most}")
    if not 0 <= settings.temperature < math.inf:
        raise InputError(f"{place}: generation.temperature={settings.temperature}: expected a number in [0, inf)")
    if settings.temperature == 0 and settings.samples > 1:
        raise InputError(f"{place}: generation.temperature=0 gives the same response each time; set samples: 1")
    check_seed(settings.seed)


def check_list(key: str, values: Sequence[Any]) -> None:
    """Raise InputError for a list that is empty or names something twice."""
    if not values:
        raise InputError(f"{key} is empty; name at least one")
    check_unique(key, values)


def check_unique(what: str, values: Sequence[Any]) -> None:
    """Raise InputError for a value that stands there twice."""
    if len(set(values)) < len(values):
        twice = next(value for value in values if list(values).count(value) > 1)
        raise InputError(f"{what}: '{twice}' stands there twice; name each once")


def check_seed(seed: int, place: str = "") -> None:
    """Raise InputError for a seed that a random generator would refuse. place: what stands before it in the message."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"{place}seed {seed}: expected 0 or more, and less than {SEEDS}")


def _get(config: Config, key: str) -> Any:
    return attrgetter(key)(config)
