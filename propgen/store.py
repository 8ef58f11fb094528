"""The store: immutable objects named by what determines them, and a readable view of links onto them.

Objects are the truth: `objects/<digest>/` appears whole, by one rename, or not at all. The view in `results/store/` is
symbolic links that anybody may delete. One process at a time makes an object, under a lease; whoever comes second
finds it made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import SoftFileLease, Timeout

from propgen.errors import InputError, PropgenError

MANIFEST = "manifest.json"
"""File of an object that lists its files with size and sha256; absent in cells, which carry their own checksum."""
CELL = "cell.parquet"
"""The only file of a cell's object."""
LEASE_SECONDS = 60.0
"""A holder that gave no sign of life for so long (by the waiter's own clock) has lost its lease."""

Outcome = Literal["made", "found", "busy"]


class CorruptError(PropgenError):
    """An artifact is truncated, altered or not what its name says."""


@dataclass(frozen=True)
class Store:
    """A folder of objects, possibly shared by machines and people."""

    objects: Path

    def folder(self, digest: str) -> Path:
        """Return where an object is, or would be."""
        return self.objects / digest

    def payload(self, digest: str, *, cell: bool = False) -> Path:
        """Return the file by which an object is known to be whole."""
        return self.folder(digest) / (CELL if cell else MANIFEST)

    def listing(self) -> set[str]:
        """Return the digests of all objects."""
        try:
            with os.scandir(self.objects) as entries:
                return {entry.name for entry in entries if not entry.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def make(self, digest: str, build: Callable[[Path], None], *, cell: bool = False, wait: bool = True) -> Outcome:
        """Make an object unless it exists. `build` fills the empty folder that it is given.

        Returns `busy` if another process is making it and wait is False. Whatever interrupts `build`, no half-made
        object can be seen.
        """
        payload = self.payload(digest, cell=cell)
        if payload.is_file():
            return "found"
        try:
            with self.lease(digest, wait=wait):
                if payload.is_file():
                    return "found"
                with self._scratch(digest) as scratch:
                    build(scratch)
                    if not cell:
                        write_manifest(scratch)
                    self._publish(scratch, digest)
                return "made"
        except Timeout:
            return "busy"

    @contextlib.contextmanager
    def lease(self, digest: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the right to make an object; a dead holder's lease is taken over. Raises Timeout if not waiting."""
        folder = self.objects / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = SoftFileLease(folder / digest, lease_duration=LEASE_SECONDS, thread_local=False)
        with lock.acquire(timeout=-1 if wait else 0, poll_interval=0.5):
            yield

    def workspace(self, digest: str) -> Path:
        """Return a folder that outlives a killed job: checkpoints of the object in making."""
        return self.objects / ".work" / digest

    def clean(self) -> None:
        """Remove scratch folders of this machine's dead processes."""
        for path in (self.objects / ".tmp").glob("*"):
            host, pid, _ = path.name.split("~")
            if host == _host() and not _alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Delete an object: renamed first, so that nobody sees half of it."""
        shutil.rmtree(self._move_out(digest), ignore_errors=True)

    def quarantine(self, digest: str, folder: Path) -> Path:
        """Move a corrupt object into `folder` (of a checkout); returns where it lies now."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{digest}-{uuid.uuid4().hex[:8]}"
        shutil.move(self._move_out(digest), target)
        return target

    def verify(self, digest: str) -> Path:
        """Return an object's folder after comparing each file with the manifest. Raises CorruptError."""
        folder = self.folder(digest)
        try:
            manifest: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())
            for name, entry in manifest.items():
                file = folder / name
                if file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
                    raise CorruptError(f"{file} is not what was published: size or sha256 differ")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{folder} is damaged: {error}") from error
        return folder

    def _publish(self, scratch: Path, digest: str) -> None:
        """Move a finished folder into place, durably: its files reach the disk before its name does."""
        for path in (*scratch.rglob("*"), scratch):
            _fsync(path)
        target = self.folder(digest)
        if target.exists():  # without its payload, or we would not be here
            self.remove(digest)
        scratch.rename(target)
        _fsync(self.objects)

    def _move_out(self, digest: str) -> Path:
        target = self._scratch_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.folder(digest).rename(target)
        return target

    @contextlib.contextmanager
    def _scratch(self, digest: str) -> Iterator[Path]:
        path = self._scratch_path(digest)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _scratch_path(self, digest: str) -> Path:
        return self.objects / ".tmp" / f"{_host()}~{os.getpid()}~{digest[:12]}{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class View:
    """The readable links of one checkout. root: `results/store`."""

    root: Path
    store: Store

    def target(self, digest: str, *, cell: bool = False) -> Path:
        """Return what a link to an object points at: its folder, or a cell's one file."""
        return self.store.payload(digest, cell=True) if cell else self.store.folder(digest)

    def shows(self, path: str, digest: str, *, cell: bool = False) -> bool:
        """Return whether the link at `path` stands and leads to the whole object."""
        link = f"{self.root}/{path}"
        try:
            os.stat(link if cell else f"{link}/{MANIFEST}")
            return os.readlink(link) == self._link_text(link, digest, cell)
        except OSError:
            return False

    def link(self, path: str, digest: str, *, cell: bool = False) -> None:
        """Point the link at `path` at an object, in one step."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(self._link_text(str(link), digest, cell))
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        fresh.replace(link)

    def _link_text(self, link: str, digest: str, cell: bool) -> str:
        """Inside the checkout links are relative, so that it can be moved; to a shared store they are absolute."""
        key = (os.path.dirname(link), cell)
        if key not in _PREFIX:
            objects = os.path.realpath(self.store.objects)
            base = os.path.realpath(self.root)
            inside = os.path.commonpath([objects, base]) == base
            _PREFIX[key] = os.path.relpath(objects, os.path.realpath(key[0])) if inside else objects
        return f"{_PREFIX[key]}/{digest}/{CELL}" if cell else f"{_PREFIX[key]}/{digest}"


_PREFIX: dict[tuple[str, bool], str] = {}


def write_manifest(folder: Path) -> None:
    """Write the list of a folder's files with their sizes (bytes) and sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _host() -> str:
    return socket.gethostname().replace("~", "-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def drop(root: Path, paths: Sequence[Path]) -> list[Path]:
    """Delete the objects behind links at or below `paths`, and the links; returns the links that went.

    root: `results/store`. Raises InputError, before anything is deleted, for a path that is no link below it.
    """
    found: list[Path] = []
    for path in paths:
        place = path.parent.resolve() / path.name
        if not place.is_relative_to(root.resolve()):
            raise InputError(f"{path} is not below {root}; name a link there, as `propgen status` shows them")
        links = [place] if place.is_symlink() else [link for link in sorted(place.rglob("*")) if link.is_symlink()]
        if not links:
            raise InputError(f"{path}: no artifact there; name a link below {root}, or a folder of them")
        found += links
    for link in found:
        target = link.parent / os.readlink(link)
        folder = target.parent if target.name == CELL else target
        with contextlib.suppress(FileNotFoundError):
            Store(folder.parent).remove(folder.name)
        link.unlink()
    return found
