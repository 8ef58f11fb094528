"""propgen: how a language model's behavioural traits generalise under finetuning."""

__version__ = "0.1.0"
