"""Scores: what a base model's finetunes scored under the evaluations of a view, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """A base model's scores under the evaluations of a view (protocol and context), its columns.

    arm: treatment of each subject, as a place in `treatments`. values: of each column, subjects x items, NaN where an
    item was not scored. families: of each column, a number for each item. reference: of each treatment, the one that it
    is compared with, -1 for none. fixed: of each treatment, whether it is no sample of seeds (the base model).
    """

    treatments: tuple[str, ...]
    columns: tuple[str, ...]
    arm: Index
    values: tuple[Array, ...]
    families: tuple[Index, ...]
    reference: Index
    fixed: Mask

    @cached_property
    def members(self) -> Array:
        """Which subjects belong to a treatment: treatments x subjects of 0 and 1."""
        return (np.arange(len(self.treatments))[:, None] == self.arm).astype(float)

    @cached_property
    def means(self) -> Array:
        """Mean score of each subject over the items that it scored: subjects x columns."""
        return np.column_stack([means(values, axis=1) for values in self.values])


def means(scores: Array, axis: int) -> Array:
    """Return the mean over what is there; NaN where nothing is."""
    counts = np.isfinite(scores).sum(axis=axis)
    return ratio(np.nansum(scores, axis=axis), counts)


def ratio(over: Array, under: NDArray[np.generic]) -> Array:
    """Return over / under, NaN where `under` is not above 0."""
    return np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0)  # type: ignore[operator]


class Seeds(NamedTuple):
    """Seeds that scored something, the mean of their means, and the variance of these (NaN for one seed)."""

    number: Array
    mean: Array
    variance: Array


def seeds(scores: Scores) -> Seeds:
    """Return what each arm's seeds say."""
    seen = np.isfinite(scores.means)
    count = scores.members @ seen
    mean = ratio(scores.members @ np.where(seen, scores.means, 0), count)
    squares = scores.members @ deviations(scores) ** 2
    return Seeds(count, mean, ratio(squares, count - 1))


def deviations(scores: Scores) -> Array:
    """Return how far each subject is from its treatment's mean, subjects x columns; 0 where it scored nothing."""
    seen = np.isfinite(scores.means)
    values = np.where(seen, scores.means, 0)
    mean = ratio(scores.members @ values, scores.members @ seen)
    return np.where(seen, values - np.nan_to_num(mean[scores.arm]), 0)
