"""A process that does one kind of work again and again, so that two of them can be timed in turns.

A worker reads a line of JSON per task from its input and answers with a line of JSON; what it prints otherwise goes to
its log. It runs in our environment or in that of the peers, with one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def serve(tasks: dict[str, Callable[..., Any]]) -> None:
    """Answer tasks until the input ends; called by a worker's script."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(tasks[task.pop("task")](**task)) + "\n")
        answers.flush()


class Worker:
    """A running worker. python: of the environment it runs in. script: a file that calls `serve`."""

    def __init__(self, python: Path | str, script: Path, log: Path) -> None:
        environment = os.environ | THREADS | {"PYTHONPATH": str(Path(__file__).parent)}
        self.log = log
        self.process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment,
        )

    def __call__(self, task: str, **arguments: Any) -> Any:
        """Have a task done and return its answer; RuntimeError with the end of the log if the worker died."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)
