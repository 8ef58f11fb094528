"""Time this project beside what people would use instead: `propgen bench [SECTION ...] [--reduced]`.

Both sides run in turns, in one session, on one core each, with the same model, data type and tokens, and their results
are compared before anything is timed. Writes table.json and table.md beside this file, or only prints with --reduced.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matrix
import quickstart
import scaling
import startup
from worker import Worker

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path.home() / ".cache/propgen/benchmarks"
TRAIT = ROOT / "conf/trait/honesty.jsonl"
SHOWN = ("torch", "transformers", "peft", "snakemake")
BATCHES = (1, 4, 16)
"""Batch sizes that the harness may choose from; its best one counts."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    ours, peer: medians in `unit`, peer None where the goal is absolute. ratio: how many times better ours is than the
    peer, or than the goal's unit. goal: least ratio, or for absolute goals the bound itself. spread: lowest and highest
    measurement of ours and of the peer. note: what it was.
    """

    section: str
    name: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None
    goal: float | None
    met: bool | None
    spread: list[list[float]]
    note: str = ""


def compared(
    section: str, name: str, unit: str, ours: Sequence[float], peer: Sequence[float], goal: float | None, note: str = ""
) -> Row:
    """Return a row for rates, of which more is better."""
    a, b = statistics.median(ours), statistics.median(peer)
    met = None if goal is None else a / b >= goal
    return Row(section, name, unit, a, b, a / b, goal, met, [_range(ours), _range(peer)], note)


def bounded(
    section: str, name: str, unit: str, ours: Sequence[float], goal: float, note: str = "", *, least: bool = False
) -> Row:
    """Return a row with an absolute goal: at most `goal`, or at least."""
    a = statistics.median(ours)
    return Row(section, name, unit, a, None, None, goal, a >= goal if least else a <= goal, [_range(ours)], note)


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


@dataclass(frozen=True)
class Bench:
    """What the sections need. base: folder of the converted model. peers: python of the peers' environment."""

    base: Path
    peers: Path
    logs: Path
    reduced: bool

    def ours(self) -> Worker:
        return Worker(sys.executable, HERE / "ours.py", self.logs / "ours.log")

    def peer(self, script: str) -> Worker:
        return Worker(self.peers, HERE / "peers" / script, self.logs / f"{script}.log")


def evaluation(bench: Bench) -> list[Row]:
    """Contrast and choice items per second, beside lm-evaluation-harness with its best batch size."""
    items, times = (8, 1) if bench.reduced else (32, 3)
    rows: list[Row] = []
    speed: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    with bench.ours() as ours, bench.peer("harness.py") as harness:
        for kind in ("contrast", "choice"):
            base = {"base": str(bench.base), "kind": kind}
            for dtype in ("bfloat16", "float32"):
                mine = {**base, "dtype": dtype, "trait": str(TRAIT), "items": items}
                asked = ours("queries", **base, trait=str(TRAIT), items=items)
                gap, best = _agree(ours, harness, mine, {**base, "dtype": dtype, "asked": asked}, items)
                a, b = [], []
                for _ in range(times):
                    a.append(items / ours("evaluate", **mine)["seconds"])
                    b.append(items / harness("evaluate", **base, dtype=dtype, asked=asked, batch=best)["seconds"])
                speed[kind, dtype] = a, b
                note = f"{items} items; batch {best}; scores differ by at most {gap:.2g}"
                rows.append(compared("evaluation", f"{kind}, {dtype}", "items/s", a, b, 2.5, note))
        mine, default = speed["contrast", "bfloat16"][0], speed["contrast", "float32"][1]
        note = "the harness takes the checkpoint's own type"
        rows.append(compared("evaluation", "contrast, bfloat16 against default", "items/s", mine, default, 7, note))
        share = _share_of_rate(ours, bench, items, statistics.median(mine))
        rows.append(bounded("evaluation", "share of the multiply rate, bfloat16", "share", [share], 0.65, least=True))
    return rows


def _agree(ours: Worker, harness: Worker, mine: Any, theirs: Any, items: int) -> tuple[float, int]:
    """Return the largest difference of scores, and the harness's best batch size; both sides are warm afterwards."""
    expected = ours("evaluate", **mine)["scores"]
    found = {batch: harness("evaluate", **theirs, batch=batch) for batch in BATCHES}
    gaps = [abs(a - b) for run in found.values() for a, b in zip(expected, run["scores"], strict=True)]
    limit = 1e-4 if mine["dtype"] == "float32" else 0.15
    assert max(gaps) <= limit, f"scores differ by {max(gaps):.3g}: this would compare different work"
    return max(gaps), min(found, key=lambda batch: found[batch]["seconds"])


def _share_of_rate(ours: Worker, bench: Bench, items: int, per_second: float) -> float:
    work = ours("work", base=str(bench.base), dtype="bfloat16", trait=str(TRAIT), items=items)["operations"]
    return work / items * per_second / ours("rate", dtype="bfloat16")


def finetuning(bench: Bench) -> list[Row]:
    """Tokens per second, padding not counted, beside trl's SFTTrainer; equal losses first."""
    count, times = (16, 1) if bench.reduced else (48, 3)
    rows: list[Row] = []
    with bench.ours() as ours, bench.peer("sft.py") as sft:
        data = ours("examples", base=str(bench.base), trait=str(TRAIT), count=count)
        for dtype in ("bfloat16", "float32"):
            a, b, gap, rounds = [], [], 0.0, times
            for _ in range(rounds):
                mine = ours("finetune", base=str(bench.base), dtype=dtype, trait=str(TRAIT), count=count)
                theirs = sft("finetune", base=str(bench.base), dtype=dtype, rows=data)
                gap = max(abs(x - y) for x, y in zip(mine["losses"], theirs["losses"], strict=True))
                assert gap <= (1e-3 if dtype == "float32" else 0.2), f"losses differ by {gap:.3g}"
                a.append(mine["tokens"] / mine["seconds"])
                b.append(theirs["tokens"] / theirs["seconds"])
            note = f"{count} examples; losses differ by at most {gap:.2g}"
            rows.append(compared("finetuning", f"LoRA, {dtype}", "tokens/s", a, b, 2.5, note))
            if dtype == "bfloat16":
                per_token = ours("training_work", base=str(bench.base), trait=str(TRAIT), count=count)
                share = statistics.median(a) * per_token / ours("rate", dtype="bfloat16")
                rows.append(
                    bounded("finetuning", "share of the multiply rate, bfloat16", "share", [share], 0.40, least=True)
                )
    return rows


def whole(bench: Bench) -> list[Row]:
    """A matrix by the clock, beside the straightforward script; and how its cost grows with the traits."""
    sizes = [(1, 1, True)] if bench.reduced else [(4, 2, True), (2, 1, False), (4, 1, False), (8, 1, False)]
    rows: list[Row] = []
    for found in matrix.measure(bench.base, bench.peers, sizes):
        name = f"{found.traits} x {found.traits} traits, {found.seeds} seeds"
        note = f"{found.finetunes} finetunes, {found.cells} cells"
        ours, peer = found.ours, found.peer
        ratio = None if peer is None else peer / ours
        spread = [[ours, ours]] if peer is None else [[ours, ours], [peer, peer]]
        rows.append(Row("matrix", name, "s", ours, peer, ratio, None, None, spread, note))
    return rows


def main_job(bench: Bench) -> list[Row]:
    """The README's main job, beside the same before anything was made fast."""
    if bench.reduced:
        return []  # minutes, and CI runs that job anyway
    now, before = quickstart.measure()
    note = "beside the same job with plain transformers and peft"
    return [
        Row("quickstart", "4 x 4", "s", now, before, before / now, None, None, [[now, now], [before, before]], note)
    ]


def workflow(bench: Bench) -> list[Row]:
    """Planning through the real plan and store, beside a Snakefile with a job per cell."""
    rows: list[Row] = []
    for cells, found in scaling.measure(bench.reduced):
        goals = scaling.GOALS if cells > 50_000 else {}
        for name, ours, peer in found:
            label = f"{cells:,} cells: {name}"
            if name in goals:
                rows.append(bounded("workflow", label, "s" if "MB" not in name else "MB", [ours], goals[name]))
            else:
                note = "" if peer is None else f"a job per cell: {peer:.1f}"
                ratio = None if peer is None else peer / ours
                unit = "s" if "MB" not in name else "MB"
                rows.append(Row("workflow", label, unit, ours, peer, ratio, None, None, [[ours, ours]], note))
    return rows


def start(bench: Bench) -> list[Row]:
    """Seconds from typing a command to its answer, or to useful work."""
    return [
        bounded("start-up", name, "s", seconds, goal)
        for name, seconds, goal in startup.measure(bench.base, 1 if bench.reduced else 5)
    ]


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "evaluation": evaluation,
    "finetuning": finetuning,
    "matrix": whole,
    "quickstart": main_job,
    "workflow": workflow,
    "start-up": start,
}


def peers() -> Path:
    """Return the python of the peers' environment, made at the first call (torch among it, a few minutes)."""
    folder = CACHE / "peers"
    python, done = folder / "bin/python", folder / "installed"
    wanted = (HERE / "peers/requirements.txt").read_text()
    if not done.exists() or done.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"  # the same build on both sides
        subprocess.run([*install, torch], check=True)
        subprocess.run([*install, "-r", str(HERE / "peers/requirements.txt")], check=True)
        done.write_text(wanted)
    return python


def base_model() -> Path:
    """Return the folder of the converted default model, made at the first call."""
    from propgen.compose import Project, compose_elements
    from propgen.model import fetch

    folder, name = CACHE / "smollm2-135m", "smollm2-135m"
    if not folder.is_dir():
        scratch = Path(tempfile.mkdtemp(dir=CACHE))
        fetch(name, compose_elements(Project(ROOT), {"model": [name]})["model"][name], scratch)
        scratch.rename(folder)
    return folder


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(names) or None,
        "avx512_bf16": "avx512_bf16" in flags,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in SHOWN},
        "peers": [line for line in (HERE / "peers/requirements.txt").read_text().splitlines() if "==" in line],
    }


def text(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Measured side by side",
        "",
        "Made by `propgen bench`; what is compared with what stands in [README.md](README.md).",
        f"{about['processor']}, {about['cores']} cores"
        + (" with AVX512-bf16" if about["avx512_bf16"] else "")
        + f"; Python {about['python']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())};",
        f"peers: {', '.join(about['peers'])}. Medians, in brackets the lowest and highest measurement.",
        "",
        "| | ours | peer | ratio | goal | met | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:g}" + ("x" if row.peer is not None else f" {row.unit}")
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        cells = [_figure(row.ours, row.spread[0], row.unit)]
        cells.append("" if row.peer is None else _figure(row.peer, row.spread[-1] if len(row.spread) > 1 else [], ""))
        lines.append(f"| {row.section}: {row.name} | {cells[0]} | {cells[1]} | {ratio} | {goal} | {met} | {row.note} |")
    return "\n".join(lines) + "\n"


def _figure(value: float, spread: Sequence[float], unit: str) -> str:
    span = f" [{spread[0]:.3g}, {spread[1]:.3g}]" if spread and spread[0] != spread[1] else ""
    return f"{value:.3g}{span} {unit}".strip()


def main() -> None:
    """Run the sections that are named, by default all, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; by default all")
    parser.add_argument("--reduced", action="store_true", help="a few minutes, printed and not written")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    CACHE.mkdir(parents=True, exist_ok=True)
    bench = Bench(base_model(), peers(), CACHE, arguments.reduced)
    chosen = arguments.sections or list(SECTIONS)
    table = HERE / "table.json"
    rows = [] if arguments.reduced else [Row(**row) for row in _kept(table) if row["section"] not in chosen]
    for name in chosen:
        found = SECTIONS[name](bench)
        rows += found
        if not found:
            continue
        print(text(found, machine()).partition("\n\n")[2].partition("\n\n")[2], flush=True)
        if not arguments.reduced:
            rows.sort(key=lambda row: list(SECTIONS).index(row.section))
            table.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
            (HERE / "table.md").write_text(text(rows, machine()))


def _kept(table: Path) -> list[dict[str, Any]]:
    return json.loads(table.read_text())["rows"] if table.exists() else []


if __name__ == "__main__":
    main()
