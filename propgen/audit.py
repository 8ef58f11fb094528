"""Audit: what a trait's bank could give away besides the trait, measured on its texts alone.

A finetune on a bank with a flaw learns the flaw: that one pole is longer, that a word marks it, that an item returns
in another dress. Each measure has limits that the banks of this project keep, and `propgen check-bank` prints.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (scikit-learn and scipy are typed in part)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from propgen.bank import POLES, Item

WORDS = r"(?u)\b[\w'\u2019]+\b"
SHINGLE = 3
"""Words of a shingle; two texts are near-duplicates if they share half of all their shingles."""
NEAR = 0.5

DUPLICATES = 0.02
"""Items that may have a near-duplicate in another family, as a share."""
LENGTH = (0.40, 0.60)
"""AUC with which an answer's number of words may tell its pole."""
VOCABULARY = (0.35, 0.65)
"""AUC with which the words of one trait's poles may tell the poles of another that is no declared neighbour."""


@dataclass(frozen=True)
class Audit:
    """Measures of a set of banks.

    duplicates: trait to the items with a near-duplicate, each as (item, its nearest, field, Jaccard similarity).
    length: trait to AUC. vocabulary: (learnt on, tried on) to AUC; for one trait, of its test items when learnt on its
    training items. neighbours: unordered pairs of traits that may share words.
    """

    items: Mapping[str, int]
    duplicates: Mapping[str, Sequence[tuple[str, str, str, float]]]
    length: Mapping[str, float]
    vocabulary: Mapping[tuple[str, str], float]
    neighbours: frozenset[frozenset[str]]

    @property
    def faults(self) -> list[str]:
        """Return what is beyond its limits, a phrase each."""
        found = [
            f"{trait}: {len(pairs)} of {self.items[trait]} items have a near-duplicate (limit {DUPLICATES:.0%})"
            for trait, pairs in self.duplicates.items()
            if len(pairs) >= DUPLICATES * self.items[trait]
        ]
        found += [
            f"{trait}: length tells the pole with AUC {auc:.2f} (limits {LENGTH[0]:.2f} to {LENGTH[1]:.2f})"
            for trait, auc in self.length.items()
            if not LENGTH[0] <= auc <= LENGTH[1]
        ]
        return found + [
            f"{pair[1]}: the words of {pair[0]} tell its poles with AUC {self.vocabulary[pair]:.2f} "
            f"(limits {VOCABULARY[0]:.2f} to {VOCABULARY[1]:.2f}, but for declared neighbours)"
            for pair in self.strangers
            if not VOCABULARY[0] <= self.vocabulary[pair] <= VOCABULARY[1]
        ]

    @property
    def strangers(self) -> list[tuple[str, str]]:
        """Return the pairs of different traits that are no declared neighbours."""
        return [pair for pair in self.vocabulary if len({*pair}) == 2 and frozenset(pair) not in self.neighbours]


def audit(banks: Mapping[str, Sequence[Item]], neighbours: Mapping[str, Sequence[str]]) -> Audit:
    """Measure banks, trait to items. neighbours: trait to the traits that it declares as such."""
    declared = frozenset(frozenset((trait, other)) for trait, others in neighbours.items() for other in others)
    return Audit(
        {trait: len(items) for trait, items in banks.items()},
        duplicates(banks),
        {trait: length_auc(items) for trait, items in banks.items()},
        vocabulary_auc(banks),
        declared,
    )


def duplicates(banks: Mapping[str, Sequence[Item]]) -> dict[str, list[tuple[str, str, str, float]]]:
    """Return, trait by trait, the items of which a text nearly stands in another family, of any trait.

    Texts are compared field by field by the exact Jaccard similarity of their sets of three-word shingles (what MinHash
    estimates); prompts of fewer words are left out, since few questions have three words and not a twin.
    """
    items = [(trait, item) for trait, bank in banks.items() for item in bank]
    found: dict[str, dict[str, tuple[str, str, str, float]]] = {trait: {} for trait in banks}
    for key in ("prompt", *POLES):
        texts = [_text(item, key) for _, item in items]
        for i, j, similarity in _near(texts):
            (trait, item), other = items[i], items[j][1]
            if item["family"] != other["family"]:
                found[trait].setdefault(item["item"], (item["item"], other["item"], key, similarity))
    return {trait: list(rows.values()) for trait, rows in found.items()}


def _near(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return ordered pairs of texts whose shingles overlap by at least NEAR, with their similarity."""
    shingles: Any = CountVectorizer(ngram_range=(SHINGLE, SHINGLE), token_pattern=WORDS, binary=True)
    sets = shingles.fit_transform(texts).astype(np.int32)
    sizes = np.asarray(sets.sum(axis=1)).ravel()
    shared = (sets @ sets.T).tocoo()
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    similarity = shared.data / np.maximum(union, 1)
    kept = (similarity >= NEAR) & (shared.row != shared.col)
    return [
        (int(i), int(j), float(s)) for i, j, s in zip(shared.row[kept], shared.col[kept], similarity[kept], strict=True)
    ]


def length_auc(items: Sequence[Item]) -> float:
    """Return the AUC with which an answer's number of words tells the positive from the negative pole."""
    texts, poles = _answers(items)
    return float(roc_auc_score(poles, [len(text.split()) for text in texts]))


def vocabulary_auc(banks: Mapping[str, Sequence[Item]]) -> dict[tuple[str, str], float]:
    """Return the AUC of a bag-of-words classifier of each trait's poles on every trait's answers.

    On its own trait it learns from training items and is tried on test items, if there are both; this says how far a
    pole has its own words, and has no limits.
    """
    counter: Any = CountVectorizer(token_pattern=WORDS, binary=True)
    counter.fit([text for items in banks.values() for text in _answers(items)[0]])
    data = {trait: _counted(counter, items) for trait, items in banks.items()}
    found: dict[tuple[str, str], float] = {}
    for trait, items in banks.items():
        learnt = _counted(counter, [item for item in items if item["split"] == "train"])
        tried = _counted(counter, [item for item in items if item["split"] == "test"])
        if len(learnt[1]) and len(tried[1]):
            found[trait, trait] = _auc(_fit(*learnt), *tried)
    models = {trait: _fit(*rows) for trait, rows in data.items()}
    return found | {(a, b): _auc(models[a], *data[b]) for a, b in permutations(banks, 2)}


def _counted(counter: Any, items: Sequence[Item]) -> tuple[Any, NDArray[np.int64]]:
    texts, poles = _answers(items)
    return counter.transform(texts), poles


def _fit(words: Any, poles: NDArray[np.int64]) -> Any:
    return LogisticRegression(max_iter=1000).fit(words, poles)


def _auc(model: Any, words: Any, poles: NDArray[np.int64]) -> float:
    return float(roc_auc_score(poles, model.decision_function(words)))


def _answers(items: Sequence[Item]) -> tuple[list[str], NDArray[np.int64]]:
    """Return all positive, then all negative answers, and 1 or 0 for their pole."""
    texts = [_text(item, pole) for pole in POLES for item in items]
    return texts, np.repeat([1, 0], len(items))


def _text(item: Item, key: str) -> str:
    value: Any = item[key]  # type: ignore[literal-required]
    return value if isinstance(value, str) else " ".join(message["content"] for message in value)
