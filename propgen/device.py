"""Devices: which one a job gets, and in which data type it multiplies there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from propgen.errors import InputError, PropgenError

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")


def gpu_count() -> int:
    """Return how many NVIDIA GPUs this machine shows, without loading anything."""
    return len(_visible_gpus())


def _visible_gpus() -> list[str]:
    """Return the visible GPUs as CUDA_VISIBLE_DEVICES names them; CUDA ignores what follows a -1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    return list(takewhile(lambda device: device not in ("", "-1"), map(str.strip, visible.split(","))))


@contextlib.contextmanager
def take(device: str, threads: int) -> Iterator[str]:
    """Hold a device for the length of a job: `cpu`, or `cuda` with one GPU that no other job of this machine holds.

    Must be entered before torch looks for GPUs, since it chooses through CUDA_VISIBLE_DEVICES.
    """
    if device not in DEVICES:
        raise InputError(f"execution.device={device}: expected one of {', '.join(DEVICES)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    count = gpu_count()
    if device == "cpu" or (device == "auto" and not count):
        os.environ["OMP_NUM_THREADS"] = str(threads)
        yield "cpu"
        return
    if not count:
        raise InputError("execution.device=cuda: no GPU is visible here; set execution.device=auto")
    with _free_gpu() as index:
        os.environ["CUDA_VISIBLE_DEVICES"] = index
        yield "cuda"


@contextlib.contextmanager
def _free_gpu() -> Iterator[str]:
    folder = Path(tempfile.gettempdir()) / f"propgen-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for index in _visible_gpus():
        lock = FileLock(folder / index)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield index
        finally:
            lock.release()
        return
    raise PropgenError("every visible GPU is taken by another propgen job; run with --resources gpu=<number of GPUs>")


def resolve_dtype(dtype: str, device: str) -> str:
    """Return `bfloat16` or `float32`: for `auto`, bfloat16 where the hardware multiplies matrices in it."""
    if dtype not in DTYPES:
        raise InputError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    if device == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if cpu_multiplies_bfloat16() else "float32"


def cpu_multiplies_bfloat16() -> bool:
    """Return whether the processor has bfloat16 products (AVX512-bf16, AMX, or Arm's BF16)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
