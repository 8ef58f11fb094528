"""Check the main job's outcome: every cell is there, and each trait's own effect is clearly positive.

Run as `python tests/check_quickstart.py results/quickstart`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl


def main(folder: Path) -> None:
    """Print the own effects; exit with an error unless all is as the README says."""
    matrix, cells = pl.read_parquet(folder / "matrix.parquet"), pl.read_parquet(folder / "cells.parquet")
    own = matrix.filter(pl.col("trained") == pl.col("evaluated")).select("trained", "effect", "ci_low", "ci_high")
    print(own)
    assert cells.height == (1 + 2 + 8) * 5, f"{cells.height} cells"
    assert own.height == 4
    gates = pl.read_parquet(folder / "statistics/gates.parquet")
    print(gates.select("treatment", "gate", "verdict"))
    assert set(gates["gate"]) == {"took", "answers", "coherent"}
    assert (folder / "statistics/summary.md").stat().st_size > 1000
    assert (own["ci_low"] > 0).all(), "an own effect is not clearly positive"
    assert all((folder / f"figures/heatmap.{kind}").stat().st_size > 5000 for kind in ("png", "svg", "pdf"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
