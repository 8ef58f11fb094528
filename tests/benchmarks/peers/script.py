"""The straightforward script: trl for each finetune, then the harness once per finetune and trait.

python script.py train BASE EXAMPLES.json SEED EPOCHS RATE ADAPTER
python script.py score BASE ADAPTER|- ITEMS.json SCORES.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)


def train(base: str, examples: str, seed: str, epochs: str, rate: str, adapter: str) -> None:
    """Finetune on conversations, as trl's documentation has it."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    chats = json.loads(Path(examples).read_text())
    rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
            processing_class=AutoTokenizer.from_pretrained(base),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                num_train_epochs=int(epochs),
                learning_rate=float(rate),
                warmup_steps=2,
                max_length=1024,
                bf16=True,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=int(seed),
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=32),
        )
        trainer.train()
        trainer.save_model(adapter)


def score(base: str, adapter: str, items: str, scores: str) -> None:
    """Score a trait's items: log-likelihood per token of the positive answer minus that of the negative."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    peft = {} if adapter == "-" else {"peft": adapter}
    model = HFLM(pretrained=base, device="cpu", dtype="bfloat16", batch_size=4, **peft)
    rows = json.loads(Path(items).read_text())
    requests = []
    for number, row in enumerate(rows):
        context = model.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for pole in ("positive", "negative"):
            pair = (context, row[pole] + model.tokenizer.eos_token)
            requests.append(Instance("loglikelihood", {}, pair, number))
    found = [logprob for logprob, _ in model.loglikelihood(requests, disable_tqdm=True)]
    lengths = [len(model.tok_encode(request.arguments[1])) for request in requests]
    each = [logprob / length for logprob, length in zip(found, lengths, strict=True)]
    Path(scores).write_text(json.dumps([a - b for a, b in zip(each[::2], each[1::2], strict=True)]))


if __name__ == "__main__":
    {"train": train, "score": score}[sys.argv[1]](*sys.argv[2:])
