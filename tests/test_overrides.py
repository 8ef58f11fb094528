"""Overrides as Snakemake's --config passes them: a list, or the text that it makes of an unquoted one."""

from __future__ import annotations

import re

import pytest
import yaml
from planning import REAL

from propgen.compose import compose
from propgen.errors import InputError
from propgen.workflow import common_overrides, split_overrides


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("", []),
        ("[]", []),
        ([], []),
        ("seeds=[0,1]", ["seeds=[0,1]"]),
        ("[seeds=[0,1]]", ["seeds=[0,1]"]),
        ("[seeds=[0,1],name=x]", ["seeds=[0,1]", "name=x"]),
        (" [ seeds=[0, 1] , name=x ] ", ["seeds=[0, 1]", "name=x"]),
        ('["seeds=[0,1]","name=x"]', ["seeds=[0,1]", "name=x"]),
        ("['seeds=[0,1]', 'name=x']", ["seeds=[0,1]", "name=x"]),
        ("seeds=[0,1],name=x", ["seeds=[0,1]", "name=x"]),
        ("[controls={regimes:[a,b],seeds:[0]},name=x]", ["controls={regimes:[a,b],seeds:[0]}", "name=x"]),
        ('[name="a,b"]', ['name="a,b"']),
        ('[name="a]b",seeds=[1]]', ['name="a]b"', "seeds=[1]"]),
        ("[name=x,]", ["name=x"]),
        (["seeds=[0,1]", " name=x "], ["seeds=[0,1]", "name=x"]),
        (("name=x",), ["name=x"]),
    ],
)
def test_overrides_are_split(value: object, expected: list[str]) -> None:
    """Only commas outside of brackets and quotes separate."""
    assert split_overrides(value) == expected


@pytest.mark.parametrize(
    "typed",
    [
        'overrides=["seeds=[0,1,2]","training.learning_rate=1e-4"]',
        "overrides=[seeds=[0,1,2],training.learning_rate=1e-4]",
        "overrides=seeds=[0,1,2],training.learning_rate=1e-4",
        'overrides=["seeds=[0,1,2]", "training.learning_rate=1e-4"]',
    ],
)
def test_what_a_user_types_arrives_however_it_is_quoted(typed: str) -> None:
    """Snakemake reads a value of --config as Python or YAML where it can, and as text where it cannot."""
    value = typed.partition("=")[2]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    overrides = common_overrides({"experiment": "smoke", "overrides": parsed})
    assert overrides == ["experiment=smoke", "seeds=[0,1,2]", "training.learning_rate=1e-4"]
    config = compose(REAL, overrides).config
    assert (config.seeds, config.training.learning_rate) == ([0, 1, 2], 1e-4)


@pytest.mark.parametrize("config", [{}, {"experiment": None}, {"experiment": ""}, {"overrides": None}])
def test_no_experiment_is_the_quickstart(config: dict[str, object]) -> None:
    """`snakemake --cores all` needs no argument."""
    assert common_overrides(config) == ["experiment=quickstart"]


def test_an_experiment_among_the_overrides_wins() -> None:
    """The last of two choices counts, as on propgen's own command line."""
    overrides = common_overrides({"overrides": ["experiment=smoke"]})
    assert compose(REAL, overrides).chosen == {"experiment": "smoke"}


@pytest.mark.parametrize(("key", "near"), [("experimnt", "did you mean 'experiment'?"), ("seeds", "known are: exp")])
def test_an_unknown_config_key_is_refused_with_advice(key: str, near: str) -> None:
    """Settings of the experiment are overrides, and the message shows how to write them."""
    with pytest.raises(InputError, match=re.escape(f"--config {key}=...: unknown key; {near}")) as caught:
        common_overrides({key: "x"})
    assert f'["{key}=..."]' in str(caught.value)


@pytest.mark.parametrize("value", [["seeds"], "seeds", {"seeds": [0]}, 3, [3]])
def test_what_is_no_override_is_refused(value: object) -> None:
    """Odd values end in a sentence, not in a traceback."""
    with pytest.raises(InputError, match="expected key=value"):
        compose(REAL, common_overrides({"overrides": value}))
