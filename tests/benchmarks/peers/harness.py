"""EleutherAI's lm-evaluation-harness: log-likelihoods of the same tokens, through its own batching."""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from worker import serve


@cache
def _model(base: str, dtype: str, batch: int) -> HFLM:
    torch.set_num_threads(1)
    return HFLM(pretrained=base, device="cpu", dtype=dtype, batch_size=batch)


def evaluate(base: str, dtype: str, asked: list[dict[str, Any]], kind: str, batch: int) -> dict[str, Any]:
    """Score queries with two responses each; return seconds and scores as ours are defined."""
    model = _model(base, dtype, batch)
    requests = [
        ((f"{number}", f"{which}"), query["prompt"], response)
        for number, query in enumerate(asked)
        for which, response in enumerate(query["responses"])
    ]
    began = time.perf_counter()
    found = [logprob for logprob, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]
    seconds = time.perf_counter() - began
    scores = []
    for query, positive, negative in zip(asked, found[::2], found[1::2], strict=True):
        if kind == "choice":
            scores.append(1 / (1 + math.exp(negative - positive)))
        else:
            lengths = [len(response) for response in query["responses"]]
            scores.append(positive / lengths[0] - negative / lengths[1])
    return {"seconds": seconds, "scores": scores}


if __name__ == "__main__":
    serve({"evaluate": evaluate})
