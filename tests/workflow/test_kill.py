"""Killed anywhere, run twice at once: the next run completes with the same bytes, and nothing is made twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import Checkout


def digests(checkout: Checkout) -> dict[str, bytes]:
    """Return object file to bytes, for every object; times of training stand in files of their own."""
    objects = checkout.store / "objects"
    return {
        str(path.relative_to(objects)): path.read_bytes()
        for path in objects.glob("[0-9a-f]*/*")
        if path.name not in ("timing.json", "manifest.json")
    }


def begin(checkout: Checkout, *overrides: str, **env: str) -> subprocess.Popen[str]:
    """Start the smoke experiment in a session of its own."""
    return subprocess.Popen(
        checkout.command("smoke", overrides),
        cwd=checkout.root,
        env={**checkout.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(checkout: Checkout, what: str, process: subprocess.Popen[str]) -> None:
    """Wait until a piece of work that starts with `what` has begun."""
    calls = Path(checkout.env["PRETEND_CALLS"])
    for _ in range(1200):
        if calls.exists() and any(line.startswith(what) for line in calls.read_text().splitlines()):
            return
        assert process.poll() is None, process.stdout and process.stdout.read()[-3000:]
        time.sleep(0.05)
    raise AssertionError(f"{what} never began")


def is_finetune(process: psutil.Process) -> bool:
    """Return whether a process is a pretended finetune."""
    with contextlib.suppress(psutil.NoSuchProcess):
        line = process.cmdline()
        return "finetune" in line and any(part.endswith("pretend.py") for part in line)
    return False


def commands(process: subprocess.Popen[str]) -> list[list[str]]:
    """Return the command lines of a process's living descendants."""
    lines: list[list[str]] = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile, or not yet reaped
            lines.append(child.cmdline())
    return lines


@pytest.mark.parametrize("moment", ["model", "finetune", "score"])
def test_everything_killed_in_the_middle_of_a_stage(checkout: Checkout, finished_run: Checkout, moment: str) -> None:
    """SIGKILL to Snakemake and all jobs at once: the same command ends with the bytes of an undisturbed run."""
    process = begin(checkout, PRETEND_SLEEP="1.5")
    wait_for(checkout, moment, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not {name for name in digests(checkout) if name not in digests(finished_run)}
    checkout.snakemake("smoke")
    assert digests(checkout) == digests(finished_run)
    assert not list((checkout.store / "objects/.tmp").iterdir())


def test_snakemake_alone_is_killed_and_its_jobs_live_on(checkout: Checkout, finished_run: Checkout) -> None:
    """The next run waits for orphaned jobs by their leases, or finds their results; nothing is trained twice."""
    process = begin(checkout, PRETEND_SLEEP="2")
    wait_for(checkout, "finetune", process)
    process.kill()
    process.wait()
    checkout.snakemake("smoke")
    calls = [call for call in checkout.calls if call.startswith("finetune")]
    assert len(calls) == len(set(calls)) == 3
    assert digests(checkout) == digests(finished_run)


def test_a_killed_job_fails_the_run_and_the_next_one_completes(checkout: Checkout, finished_run: Checkout) -> None:
    """SIGKILL to one finetune: exit 1, no half adapter, and the next run trains it."""
    process = begin(checkout, PRETEND_SLEEP="1.5")
    wait_for(checkout, "finetune", process)
    job = next(child for child in psutil.Process(process.pid).children(recursive=True) if is_finetune(child))
    job.kill()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text[-3000:]
    checkout.snakemake("smoke")
    assert digests(checkout) == digests(finished_run)


def test_killed_while_writing_tables(finished: Checkout) -> None:
    """A matrix job killed half-way leaves no half table, and Snakemake's mark on it does not stop the next run."""
    before = (finished.root / "results/smoke/matrix.csv").read_bytes()
    process = begin(finished, "analysis.confidence=.9")
    for _ in range(600):
        busy = any("matrix" in line for line in commands(process))
        if busy:
            break
        time.sleep(0.02)
    assert busy
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished.snakemake("smoke")
    assert (finished.root / "results/smoke/matrix.csv").read_bytes() == before


def test_two_runs_at_once_in_one_checkout(checkout: Checkout, finished_run: Checkout) -> None:
    """The second waits for the first; both end right and each piece of work is done once."""
    first, second = begin(checkout, PRETEND_SLEEP="0.3"), begin(checkout, PRETEND_SLEEP="0.3")
    texts = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], texts
    assert sum("waiting for it to end" in text for text in texts) == 1
    calls = checkout.calls
    assert len([c for c in calls if not c.startswith("load")]) == 1 + 3 + 8
    assert digests(checkout) == digests(finished_run)


def test_two_runs_at_once_in_two_checkouts_on_one_store(
    new_checkout: Callable[[str], Checkout], tmp_path: Path
) -> None:
    """They share the work: each artifact is made once, and both end with the full matrix."""
    ours, theirs = new_checkout("ours"), new_checkout("theirs")
    store = f"store={tmp_path / 'shared'}"
    running = [begin(checkout, store, PRETEND_SLEEP="0.5") for checkout in (ours, theirs)]
    texts = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], texts
    done = [call for call in (*ours.calls, *theirs.calls) if not call.startswith("load")]
    assert len(done) == len(set(done)) == 1 + 3 + 8
    tables = [(c.root / "results/smoke/matrix.csv").read_bytes() for c in (ours, theirs)]
    assert tables[0] == tables[1]
    assert len(ours.cells()) == len(theirs.cells()) == 8


def test_a_dry_run_beside_a_run_neither_waits_nor_disturbs(checkout: Checkout) -> None:
    """`snakemake -n` answers at once while a run works."""
    process = begin(checkout, PRETEND_SLEEP="1.5")
    wait_for(checkout, "finetune", process)
    assert "dry-run" in checkout.snakemake("smoke", more=("-n",))
    assert process.poll() is None
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
