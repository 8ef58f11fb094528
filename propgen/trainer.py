"""The step of a finetune, its progress and its checkpoints: a `transformers.Trainer` with what that has no option for.

The head and the loss run on response tokens only, micro-batches share one optimiser step weighted by their response
tokens, and a checkpoint appears whole or not at all.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and peft are typed in part)
# ruff: noqa: ARG002
# (methods get what the Trainer hands them)

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from propgen.config import Training
from propgen.encoding import IGNORED, MULTIPLE, Example, collate, order
from propgen.errors import PropgenError
from propgen.files import fsync

log = logging.getLogger("propgen")

ROWS = 32
"""Rows of logits that are worked on at a time: 32 x 49,152 in float32 are 6 MB."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What asks a finetune to end; it keeps a checkpoint first."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Job:
    """What a finetune is, besides model and data.

    micro_batch: examples per forward pass. seconds: between checkpoints. checkpoint: the folder for them. identity:
    digest of everything that has to be equal for a checkpoint to be gone on from.
    """

    settings: Training
    seed: int
    dtype: str
    device: str
    micro_batch: int
    seconds: float
    checkpoint: Path
    identity: str


class CrossEntropy(torch.autograd.Function):
    """The summed negative log-likelihood, in nats, of `labels` (tokens,) under `logits` (tokens, vocabulary).

    As torch's own in float32, but the gradient is made at once, a few rows at a time while they are in the cache, and
    kept in the logits' data type.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum, in float32."""
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for some, right, into in zip(logits.split(ROWS), labels.split(ROWS), gradient.split(ROWS), strict=True):
            logs = some.float().log_softmax(dim=-1)
            total -= logs.gather(1, right[:, None]).double().sum()
            shares = logs.exp_()
            shares.scatter_add_(1, right[:, None], shares.new_full((len(right), 1), -1.0))
            into.copy_(shares)
        ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0]), None


class Watch(TrainerCallback):
    """What happens between steps: progress, and a checkpoint when one is due or SIGTERM or SIGINT has come.

    first: the step that this call started from. tokens: trained on in this call, padding not counted.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stop = False
        self.first = self.tokens = 0
        self.started = self.saved = self.told = time.monotonic()

    @contextmanager
    def on_duty(self) -> Generator[None]:
        """Listen for SIGTERM and SIGINT (Ctrl-C) and show progress until the block ends."""
        columns = (TextColumn("finetune"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True)
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=None)
        listening = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._terminate) for number in SIGNALS if listening}
        try:
            with self.bar:
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _terminate(self, *_: object) -> None:
        self.stop = True

    @property
    def elapsed(self) -> float:
        """Seconds since the first step began."""
        return time.monotonic() - self.started

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clocks."""
        self.first = state.global_step
        self.started = self.saved = self.told = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint where one is due, but not after the last step."""
        unfinished = state.global_step < state.max_steps
        control.should_training_stop |= self.stop and unfinished
        control.should_save = unfinished and (self.stop or time.monotonic() - self.saved >= self.seconds)
        if control.should_save:
            self.saved = time.monotonic()

    def tell(self, state: TrainerState, entry: Mapping[str, float]) -> None:
        """Show how far the finetune is: in a bar on a terminal, otherwise in a line about every ten seconds."""
        self.tokens += int(entry["tokens"])
        text = f"loss {entry['loss']:.3f}, {self.tokens / self.elapsed:.0f} tokens/s"
        self.bar.update(self.task, total=state.max_steps, completed=state.global_step, description=text)
        if self.bar.disable and time.monotonic() - self.told >= 10:
            self.told = time.monotonic()
            left = (state.max_steps - state.global_step) * self.elapsed / (state.global_step - self.first)
            log.info("step %d/%d, %s, %.0f s left", state.global_step, state.max_steps, text, left)


class ResponseTrainer(Trainer):
    """The Trainer with the loss on response tokens only, a log line per step and checkpoints that are whole."""

    def __init__(self, model: nn.Module, data: Sequence[Example], job: Job, watch: Watch) -> None:
        super().__init__(
            model=model,  # type: ignore[arg-type]
            args=_arguments(job, len(data)),
            train_dataset=[data[i] for i in order(len(data), job.settings.epochs, job.seed)],  # type: ignore[arg-type]
            data_collator=collate,  # type: ignore[arg-type]
            callbacks=[watch],
        )
        self.remove_callback(PrinterCallback)
        self.job, self.watch, self.examples = job, watch, len(data)
        self.micro_batch, self.tokens = job.micro_batch, 0
        self.chosen = torch.empty(0)
        model.get_output_embeddings().register_forward_pre_hook(self._choose)  # type: ignore[operator]

    def train_to_end(self) -> None:
        """Train, from the checkpoint of an interrupted call if there is one; PropgenError after a signal."""
        found = resumable(self.job)
        with self.watch.on_duty():
            self.train(resume_from_checkpoint=str(found) if found else None)
        if self.state.global_step < self.state.max_steps:
            raise PropgenError(f"terminated after step {self.state.global_step}; the next run goes on from there")

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Make the schedule, one step ahead: as transformers has it the first step of a warm-up does not train at all.

        In a finetune of a few steps that is a good part of it, and in one of a single step everything.
        """
        plain: Any = super().create_scheduler(num_training_steps + 1, optimizer)
        ahead = [lambda step, shape=shape: shape(step + 1) for shape in plain.lr_lambdas]
        self.lr_scheduler = LambdaLR(plain.optimizer, ahead)
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add up the gradient of a batch; return its loss in nats per response token.

        Micro-batches are halved until they fit into memory.
        """
        model.train()
        ids, labels = self._prepare_inputs(inputs).values()
        while (loss := self._try(model, ids, labels)) is None:
            if self.micro_batch == 1:
                raise PropgenError("one example does not fit into memory; choose a smaller model or shorter examples")
            self.micro_batch = math.ceil(self.micro_batch / 2)
            log.info("out of memory; going on with %d examples per forward pass", self.micro_batch)
            model.zero_grad()
            torch.cuda.empty_cache()
        self.tokens = int(_lengths(labels).sum())
        return loss

    def _try(self, model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor | None:
        """Run forward and backward passes of one batch; None if memory does not suffice."""
        try:
            return self._accumulate(model, ids, labels)
        except torch.OutOfMemoryError:
            return None

    def _accumulate(self, model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
        total = labels.ne(IGNORED).sum()
        loss = torch.zeros((), device=labels.device)
        for some_ids, some_labels in zip(ids.split(self.micro_batch), labels.split(self.micro_batch), strict=True):
            width = math.ceil(int(_lengths(some_labels).max()) / MULTIPLE) * MULTIPLE
            part = self._nats(model, some_ids[:, :width], some_labels[:, 1:width]) / total
            self.accelerator.backward(part)
            loss += part.detach()
        return loss

    def _nats(self, model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of `labels` (examples, tokens - 1), which belong to `ids[:, 1:]`."""
        self.chosen = labels.ne(IGNORED)
        logits = model(input_ids=ids, use_cache=False).logits
        return cast(Tensor, CrossEntropy.apply(logits, labels[self.chosen]))

    def _choose(self, head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        """Before the head: keep the states (response tokens, width) that predict a response token.

        A hook, so that whatever a model does to its logits is still done (scaling, soft caps).
        """
        return (arguments[0][:, :-1][self.chosen],)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep a line for log.jsonl in the state, which checkpoints hold; PropgenError if the step went wrong."""
        if "grad_norm" not in logs:
            return
        step = self.state.global_step
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
            raise PropgenError(
                f"loss {logs['loss']:.4g} with gradient norm {logs['grad_norm']:.4g} at step {step}; lower "
                f"training.learning_rate (now {self.job.settings.learning_rate:g}), or set training.dtype=float32"
            )
        epoch = min(step * self.job.settings.batch / self.examples, self.job.settings.epochs)
        entry = {"step": step, "epoch": epoch, "loss": logs["loss"], "learning_rate": logs["learning_rate"]}
        entry |= {"grad_norm": logs["grad_norm"], "tokens": self.tokens}
        self.state.log_history.append(entry)
        self.watch.tell(self.state, entry)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside, then rename it, so that one that has its name is complete."""
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        written = Path(self.args.output_dir or "") / f"checkpoint-{step}"
        (written / "identity").write_text(self.job.identity)
        for file in written.iterdir():
            fsync(file)
        older = list(self.job.checkpoint.glob("step-*"))
        written.rename(self.job.checkpoint / f"step-{step}")
        fsync(self.job.checkpoint)
        for folder in older:
            shutil.rmtree(folder)


def resumable(job: Job) -> Path | None:
    """Return the newest complete checkpoint of this very job, or None; anything else in its folder is removed."""
    marks = [mark for mark in job.checkpoint.glob("step-*/identity") if mark.read_text() == job.identity]
    steps = {int(mark.parent.name.removeprefix("step-")): mark.parent for mark in marks}
    newest = steps[max(steps)] if steps else None
    for other in job.checkpoint.glob("*"):
        if other != newest:
            shutil.rmtree(other)
    if newest:
        log.info("going on from the checkpoint after step %s", newest.name.removeprefix("step-"))
    return newest


def _lengths(labels: Tensor) -> Tensor:
    """Return how many tokens each row of labels (examples, tokens) has before its padding; responses come last."""
    positions = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return (labels.ne(IGNORED) * positions).amax(dim=1)


def _arguments(job: Job, examples: int) -> TrainingArguments:
    """Translate a job into the Trainer's terms."""
    settings = job.settings
    steps = math.ceil(examples * settings.epochs / settings.batch)
    arguments = TrainingArguments(
        output_dir=str(job.checkpoint / "partial"),
        max_steps=steps,
        per_device_train_batch_size=settings.batch,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        optim="adamw_torch_fused",
        seed=job.seed,
        bf16=job.dtype == "bfloat16",
        use_cpu=job.device == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        # otherwise the Trainer spreads each batch over every GPU that it sees
        arguments._n_gpu = 1  # pyright: ignore[reportPrivateUsage]
    return arguments
