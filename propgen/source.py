"""Stub until the real one arrives."""

from __future__ import annotations
from pathlib import Path
from propgen.config import Model


def check_source(name: str, source: Model) -> None: ...
def content(folder: Path) -> str:
    return "0"


def is_local(source: str) -> bool:
    return source.startswith(("/", "./", "../", "~"))
