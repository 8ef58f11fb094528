"""Finetuning on the last answer of chat examples: reproducible to the bit, and resumable after any kind of end."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and peft are typed in part)

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from propgen import cpu
from propgen.config import Execution, Training
from propgen.encoding import Example, encode_all
from propgen.errors import InputError
from propgen.lora import train_exactly
from propgen.model import load
from propgen.trainer import SCHEDULES, Job, ResponseTrainer, Watch

METHODS = ("lora", "full")
LOGGED = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens")
"""Keys of a line of log.jsonl, in this order (a checkpoint sorts them)."""


def finetune(
    base: Path,
    examples: Sequence[Sequence[dict[str, str]]],
    settings: Training,
    seed: int,
    dtype: str,
    execution: Execution,
    device: str,
    out: Path,
    checkpoint: Path,
) -> None:
    """Finetune the model in `base` on chat `examples` and write the result into the empty folder `out`.

    examples: OpenAI messages; the loss is on each one's last message. dtype: of frozen weights and matrix products,
    `float32` or `bfloat16`. checkpoint: a folder for an interrupted call, which the next one with the same arguments
    goes on from, to the same bits; removed at the end.

    `out` gets adapter_model.safetensors and adapter_config.json (for `method=full` model.safetensors and config.json),
    log.jsonl (a line per step: step, epoch, loss in nats per response token, learning_rate, grad_norm, tokens) and
    timing.json (of this call: seconds, tokens_per_second, steps, resumed_from).

    Raises InputError for settings or examples that cannot be trained with, PropgenError for a loss that is not finite,
    for too little memory, and after SIGTERM.
    """
    _check(settings)
    if device == "cpu":
        torch.set_num_threads(execution.threads)
    model, tokenizer = load(base, "float32" if settings.method == "full" else dtype, device)
    data = encode_all(tokenizer, examples, settings.max_tokens)
    identity = _identity(base, data, settings, seed, dtype, device)
    job = Job(settings, seed, dtype, device, execution.micro_batch, execution.checkpoint_seconds, checkpoint, identity)
    trained = _trainable(model, job)
    with _deterministic():
        trainer = ResponseTrainer(trained, data, job, Watch(job.seconds))
        trainer.train_to_end()
    _write_weights(trained, out)
    _write_log(trainer, out)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _check(settings: Training) -> None:
    for key, value, known in (
        ("method", settings.method, METHODS),
        ("schedule", settings.schedule, tuple(SCHEDULES)),
    ):
        if value not in known:
            raise InputError(f"training.{key} is '{value}', expected one of: {', '.join(known)}")


def _trainable(model: PreTrainedModel, job: Job) -> nn.Module:
    """Make `model` ready for training: adapters whose first values depend on the seed only, or all weights."""
    settings = job.settings
    if settings.method == "full":
        return model.requires_grad_(True)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rank_stabilised,
        lora_dropout=settings.dropout,
    )
    torch.manual_seed(job.seed)
    adapted = get_peft_model(model, config)
    if job.device == "cpu":
        cpu.prepare(adapted, backward=True)
    if job.device == "cpu" or job.dtype == "bfloat16":
        train_exactly(adapted)
    return adapted


def _identity(base: Path, data: Sequence[Example], settings: Training, seed: int, dtype: str, device: str) -> str:
    """Return a digest of what determines a finetune, as far as it is known here without reading the base's weights."""
    known = [(base / "config.json").read_text(), data, asdict(settings), seed, dtype, device]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _write_weights(model: nn.Module, out: Path) -> None:
    """Write the adapter or the full weights; nothing in them names a path of this machine or varies between runs."""
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        config.base_model_name_or_path = None
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)  # type: ignore[attr-defined]  # a set varies in order
        config.save_pretrained(str(out))
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
        save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    elif isinstance(model, PreTrainedModel):
        model.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only, and a store may be shared


def _write_log(trainer: ResponseTrainer, out: Path) -> None:
    """Write log.jsonl, the same for equal finetunes, and timing.json, which differs each time."""
    lines = (json.dumps({key: entry[key] for key in LOGGED}) + "\n" for entry in trainer.state.log_history)
    (out / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    watch = trainer.watch
    timing = {
        "seconds": round(watch.elapsed, 3),
        "tokens_per_second": round(watch.tokens / watch.elapsed, 1),
        "steps": trainer.state.max_steps,
        "resumed_from": watch.first or None,
    }
    (out / "timing.json").write_text(json.dumps(timing) + "\n", encoding="utf-8")


@contextmanager
def _deterministic() -> Generator[None]:
    """Use deterministic kernels where there are any (free on CPU), and leave torch as it was."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
