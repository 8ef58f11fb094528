"""Our side of the comparisons, through the functions that the stages call."""

from __future__ import annotations

import json
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from worker import serve

from propgen import bank, scoring, training
from propgen.config import Execution, Training
from propgen.encoding import encode_all, order
from propgen.model import load, load_frozen
from propgen.query import shared


@cache
def _model(base: str, dtype: str) -> Any:
    torch.set_num_threads(1)
    return load_frozen(Path(base), None, dtype, "cpu")


def _items(trait: str, count: int) -> list[Any]:
    return bank.load(Path(trait)).test("id", count)  # type: ignore[return-value]


def queries(base: str, trait: str, items: int, kind: str) -> list[dict[str, Any]]:
    """Return what is asked, as tokens, so that a peer is asked the same."""
    _, tokenizer = _model(base, "bfloat16")
    chosen = _items(trait, items)
    if kind == "contrast":
        asked = [scoring.contrast_query(tokenizer, item) for item in chosen]
        return [{"prompt": q.prompt, "responses": [r for b in q.branches for r in b.responses]} for q in asked]
    asked = [scoring.choice_query(tokenizer, item) for item in chosen]
    return [{"prompt": q.prompt + b.context, "responses": b.responses} for q in asked for b in q.branches]


def evaluate(base: str, dtype: str, trait: str, items: int, kind: str) -> dict[str, Any]:
    """Score items; return seconds and the scores of items, or of items and orders."""
    model, tokenizer = _model(base, dtype)
    chosen = _items(trait, items)
    began = time.perf_counter()
    rows = scoring.SCORERS[kind](model, tokenizer, chosen, Execution().token_budget)  # type: ignore[arg-type]
    return {"seconds": time.perf_counter() - began, "scores": [row["score"] for row in rows]}


def work(base: str, dtype: str, trait: str, items: int) -> dict[str, float]:
    """Return what scoring contrast items takes at least: floating-point operations of its matrix products with weights.

    Two per weight and token for the layers, and per weight and scored token for the head; attention is not counted.
    """
    model, tokenizer = _model(base, dtype)
    asked = [scoring.contrast_query(tokenizer, item) for item in _items(trait, items)]
    prefix = shared([query.prompt for query in asked])
    tokens = prefix + sum(query.tokens - prefix for query in asked)
    scored = sum(len(response) for query in asked for branch in query.branches for response in branch.responses)
    body, head = weights(model.config)
    return {"operations": 2.0 * (tokens * body + scored * head)}


def weights(config: Any) -> tuple[int, int]:
    """Return how many weights of a Llama the matrix products of its layers and of its head have."""
    width, heads = config.hidden_size, config.num_attention_heads
    attention = 2 * width * width + 2 * width * width * config.num_key_value_heads // heads
    return config.num_hidden_layers * (attention + 3 * width * config.intermediate_size), width * config.vocab_size


def rate(dtype: str, tokens: int = 512, width: int = 576, wide: int = 1536) -> float:
    """Return the multiply rate in operations per second: torch's own product of a typical size, the best of many."""
    torch.set_num_threads(1)
    states, weight = (torch.randn(n, width).to(getattr(torch, dtype)) for n in (tokens, wide))
    best = float("inf")
    for _ in range(60):
        began = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * tokens * width * wide / best


def settings(examples: int, dtype: str) -> Training:
    """Return the finetune that is compared: LoRA of rank 16 on all linear layers, batches of 8, a constant rate."""
    del examples
    return Training(epochs=1, schedule="constant", warmup=0.0, learning_rate=3e-4, dtype=dtype)


def _examples(trait: str, count: int) -> list[Any]:
    return [bank.messages(item["prompt"], item["positive"]) for item in bank.load(Path(trait)).train(count)]


def examples(base: str, trait: str, count: int) -> list[dict[str, Any]]:
    """Return training examples as tokens, in training order; `completion_mask` marks what is trained on."""
    _, tokenizer = load(Path(base), "bfloat16", "cpu")
    encoded = encode_all(tokenizer, _examples(trait, count), 1024)
    chosen = [encoded[i] for i in order(len(encoded), 1, 0)]
    masks = [[0] * e.prompt + [1] * (len(e.tokens) - e.prompt) for e in chosen]
    return [{"input_ids": e.tokens, "completion_mask": m} for e, m in zip(chosen, masks, strict=True)]


def finetune(base: str, dtype: str, trait: str, count: int) -> dict[str, Any]:
    """Finetune; return seconds of the steps, tokens (padding not counted) and the loss of each step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        chosen = settings(count, dtype)
        checkpoint = Path(folder) / "checkpoint"
        training.finetune(Path(base), _examples(trait, count), chosen, 0, dtype, Execution(), "cpu", out, checkpoint)
        timing = json.loads((out / "timing.json").read_text())
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        "seconds": timing["seconds"],
        "tokens": sum(entry["tokens"] for entry in log),
        "losses": [entry["loss"] for entry in log],
    }


def training_work(base: str, trait: str, count: int) -> float:
    """Return what a token of these examples takes at least: operations of the products with weights.

    Forward and backward (no gradient of frozen weights) two each per weight, for the head on response tokens only; six
    per weight of the adapters.
    """
    model, _ = _model(base, "bfloat16")
    rows = examples(base, trait, count)
    body, head = weights(model.config)
    width, wide = model.config.hidden_size, model.config.intermediate_size
    group = model.config.num_key_value_heads * width // model.config.num_attention_heads
    rank_weights = 16 * model.config.num_hidden_layers * (2 * 2 * width + 2 * (width + group) + 3 * (width + wide))
    share = sum(sum(row["completion_mask"]) for row in rows) / sum(len(row["input_ids"]) for row in rows)
    return 4.0 * (body + share * head) + 6.0 * rank_weights


if __name__ == "__main__":
    serve({f.__name__: f for f in (queries, evaluate, work, rate, examples, finetune, training_work)})
