"""Imports: a job does not wait for what it has no use for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from propgen.imports import lean
with lean():
    import propgen.scoring, propgen.model
assert "sklearn" not in sys.modules and "pandas" not in sys.modules
import sklearn
with lean():
    assert sys.modules["sklearn"] is sklearn
"""


def test_a_job_loads_neither_scikit_learn_nor_pandas_and_may_later() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
