"""Devices: which one a job takes, what a second job gets, and data types."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from propgen import device
from propgen.device import cpu_multiplies_bfloat16, gpu_count, resolve_dtype, take
from propgen.errors import InputError, PropgenError

Show = Callable[[str | None], None]


@pytest.fixture(autouse=True)
def show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Show:
    """Return a setter of CUDA_VISIBLE_DEVICES; whatever a test does to the environment is undone."""
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def to(visible: str | None) -> None:
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return to


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1", 2), (" 2 , 3 ", 2), ("0,-1,1", 1), ("GPU-8f2c", 1)]
)
def test_visible_gpus_are_counted_as_cuda_does(show: Show, visible: str, count: int) -> None:
    """Nothing behind a -1 is visible; names may be indices or UUIDs."""
    show(visible)
    assert gpu_count() == count


def test_without_the_variable_the_driver_is_asked(show: Show) -> None:
    """The driver's folder has an entry for each GPU, and none where there is no driver."""
    show(None)
    entries = Path("/proc/driver/nvidia/gpus")
    assert gpu_count() == (len(list(entries.iterdir())) if entries.is_dir() else 0)


def test_auto_without_a_gpu_is_the_processor(show: Show) -> None:
    """The threads of a job reach OpenMP before torch starts."""
    show("")
    with take("auto", 3) as found:
        assert found == "cpu"
        assert os.environ["OMP_NUM_THREADS"] == "3"


def test_cpu_is_the_processor_also_beside_a_gpu(show: Show) -> None:
    """Who asks for the processor holds no GPU."""
    show("0")
    with take("cpu", 1) as found:
        assert found == "cpu"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_each_job_holds_a_gpu_of_its_own(show: Show) -> None:
    """A second job gets the next one, a third is told what to do, and a GPU that was given back is taken again."""
    show("4,7")
    with take("auto", 1) as found:
        assert (found, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda", "4")
        show("4,7")
        with take("cuda", 1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
            show("4,7")
            with pytest.raises(PropgenError, match=r"every visible GPU is taken.*--resources gpu="), take("auto", 1):
                pass
    show("4,7")
    with take("auto", 1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_a_gpu_is_given_back_after_a_failure(show: Show) -> None:
    """A finetune that crashes does not keep its GPU."""
    for _ in range(2):
        show("0")
        with pytest.raises(RuntimeError), take("cuda", 1):
            raise RuntimeError("crash")


def test_a_hidden_gpu_is_never_handed_out(show: Show) -> None:
    """Of `0,-1,1` only the first is there."""
    show("0,-1,1")
    with take("cuda", 1):
        show("0,-1,1")
        with pytest.raises(PropgenError, match="taken"), take("cuda", 1):
            pass


def test_cuda_without_a_gpu_is_refused(show: Show) -> None:
    """The message says what to set instead."""
    show("")
    with pytest.raises(InputError, match=r"set execution\.device=auto"), take("cuda", 1):
        pass


def test_an_unknown_device_is_refused() -> None:
    """Known ones are listed."""
    with pytest.raises(InputError, match=r"execution\.device=gpu: expected one of auto, cpu, cuda"), take("gpu", 1):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chosen_data_type_stays(dtype: str) -> None:
    """Whatever the hardware likes."""
    assert resolve_dtype(dtype, "cpu") == dtype


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, dtype: str
) -> None:
    """Elsewhere it would be emulated, several times as slow."""
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: multiplies)
    assert resolve_dtype("auto", "cpu") == dtype


def test_an_unknown_data_type_is_refused() -> None:
    """float16 is none of them: it overflows."""
    with pytest.raises(InputError, match="dtype 'float16': expected one of auto, float32, bfloat16"):
        resolve_dtype("float16", "cpu")


@pytest.mark.parametrize(
    ("flags", "found"),
    [("flags : fma avx512f avx512_bf16", True), ("flags : amx_bf16", True), ("Features : bf16 i8mm", True)],
)
def test_flags_of_processors_with_bfloat16(monkeypatch: pytest.MonkeyPatch, flags: str, found: bool) -> None:
    """Intel, AMD and Arm name it differently."""
    monkeypatch.setattr(Path, "read_text", lambda *_: flags)
    assert cpu_multiplies_bfloat16() is found


def test_other_processors_have_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one without the flag nor a system without the file."""
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags : fma avx2 avx512f")
    assert not cpu_multiplies_bfloat16()

    def fail(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert not cpu_multiplies_bfloat16()
