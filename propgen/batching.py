"""Batches of a model's inputs: longest first, within a budget of tokens that is halved whenever memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from propgen.errors import PropgenError

log = logging.getLogger("propgen")

Result = TypeVar("Result")


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for the time being."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def in_batches(
    names: Sequence[str],
    lengths: Sequence[int],
    token_budget: int,
    run: Callable[[list[int], int], list[Result]],
) -> list[Result]:
    """Return what `run` gives for each input, in the inputs' order.

    names: of the inputs, for messages. lengths: tokens of each, as wide as its row has to be. token_budget: largest
    rows x width of a batch; a longer input runs alone. run: indices of a batch's inputs and the width of its rows -> a
    result for each.

    Raises:
        PropgenError: an input that alone exceeds the memory.
    """
    pending = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    results: dict[int, Result] = {}
    while pending:
        wide = lengths[pending[0]]
        rows = pending[: max(1, token_budget // wide)]
        found = _unless_out_of_memory(run, rows, wide)
        if found is not None:
            results.update(zip(rows, found, strict=True))
            pending = pending[len(rows) :]
        elif len(rows) == 1:
            name = names[rows[0]]
            raise PropgenError(f"item '{name}' alone ({wide} tokens) exceeds the memory; free some or shorten it")
        else:
            token_budget = len(rows) * wide // 2
            log.warning("out of memory; going on with at most %d tokens per forward pass", token_budget)
    return [results[i] for i in range(len(lengths))]


def _unless_out_of_memory(
    run: Callable[[list[int], int], list[Result]], rows: list[int], width: int
) -> list[Result] | None:
    try:
        return run(rows, width)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
    clear_device_cache(garbage_collection=True)  # only here is the failed pass's memory no longer referred to
    return None
