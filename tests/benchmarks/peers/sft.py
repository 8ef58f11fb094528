"""trl's SFTTrainer: the same LoRA on the same tokens in the same order."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from worker import serve


class Clock(TrainerCallback):
    """Seconds between the beginning of the first step and the end of the last."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def finetune(base: str, dtype: str, rows: list[dict[str, Any]], out: str | None = None) -> dict[str, Any]:
    """Finetune; return seconds of the steps, tokens (padding not counted) and the loss of each step."""
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            num_train_epochs=1,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=1024,
            shuffle_dataset=False,
            train_sampling_strategy="sequential",
            bf16=dtype == "bfloat16",
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            completion_only_loss=True,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)),
            processing_class=AutoTokenizer.from_pretrained(base),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=32),
            callbacks=[clock],
        )
        trainer.train()
        if out:
            trainer.save_model(out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": clock.seconds, "tokens": sum(len(row["input_ids"]) for row in rows), "losses": losses}


if __name__ == "__main__":
    serve({"finetune": finetune})
