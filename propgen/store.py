"""The store: immutable objects named by what determines them, and a readable view of links onto them.

Objects are the truth: `objects/<digest>/` appears whole, by one rename, or not at all. The view in `results/store/` is
symbolic links that anybody may delete. One process at a time makes an object, under a lease; whoever comes second
finds it made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import SoftFileLease, Timeout

from propgen.errors import InputError, PropgenError
from propgen.files import file_sha256, fsync

MANIFEST = "manifest.json"
"""File of an object that lists its files with size and sha256; absent where a single file carries its own checksum."""
CELL, RESPONSES = "cell.parquet", "responses.parquet"
"""The only file of a cell's object, and of the responses that cells are scored from."""
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

    def payload(self, digest: str, *, cell: bool = False, file: str = CELL) -> Path:
        """Return the file by which an object is known to be whole. file: the only one, of a cell or of responses."""
        return self.folder(digest) / (file if cell else MANIFEST)

    def listing(self) -> set[str]:
        """Return the digests of all objects."""
        try:
            with os.scandir(self.objects) as entries:
                return {entry.name for entry in entries if not entry.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def make(
        self,
        digest: str,
        build: Callable[[Path], None],
        *,
        cell: bool = False,
        file: str = CELL,
        wait: bool = True,
    ) -> Outcome:
        """Make an object unless it exists. `build` fills the empty folder that it is given.

        Returns `busy` if another process is making it and wait is False. Whatever interrupts `build`, no half-made
        object can be seen.
        """
        payload = self.payload(digest, cell=cell, file=file)
        if payload.is_file():
            return "found"
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.lease(digest, wait=wait))
            except Timeout:
                return "busy"
            if payload.is_file():
                return "found"
            scratch = held.enter_context(self._scratch(digest))
            build(scratch)
            if not cell:
                write_manifest(scratch)
            return self._publish(scratch, payload)

    @contextlib.contextmanager
    def lease(self, digest: str, *, wait: bool = True) -> Generator[None]:
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
        for path in (self.objects / ".tmp").glob(f"{_host()}~*~*"):
            pid = path.name.split("~")[1]
            if pid.isdecimal() and not _alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Delete an object, if it is there: renamed first, so that nobody sees half of it."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._move_out(digest), ignore_errors=True)

    def quarantine(self, digest: str, folder: Path) -> Path:
        """Move a corrupt object into `folder` (of a checkout), unless somebody was quicker; returns where it lies."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{digest}-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(FileNotFoundError):
            shutil.move(self._move_out(digest), target)
        return target if target.exists() else folder

    def verify(self, digest: str) -> Path:
        """Return an object's folder after comparing each file with the manifest. Raises CorruptError."""
        folder = self.folder(digest)
        try:
            manifest: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())
            for name, entry in manifest.items():
                file = folder / name
                if file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
                    raise CorruptError(f"{file} is not what was published: size or sha256 differ")
        except PermissionError:
            raise  # says nothing of the content
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{folder} is damaged: {error}") from error
        return folder

    def _publish(self, scratch: Path, payload: Path) -> Outcome:
        """Move a finished folder into place, durably: its files reach the disk before its name does.

        A maker that stood still for longer than its lease may find the object made meanwhile, and leaves it.
        """
        for path in (*scratch.rglob("*"), scratch):
            fsync(path)
        target = payload.parent
        if target.exists() and not payload.is_file():
            self.remove(target.name)
        try:
            scratch.rename(target)
        except OSError:
            if not payload.is_file():
                raise
            return "found"
        fsync(self.objects)
        return "made"

    def _move_out(self, digest: str) -> Path:
        target = self._scratch_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.folder(digest).rename(target)
        return target

    @contextlib.contextmanager
    def _scratch(self, digest: str) -> Generator[Path]:
        (path := self._scratch_path(digest)).mkdir(parents=True)
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

    def shows(self, path: str, digest: str, *, cell: bool = False, file: str = CELL) -> bool:
        """Return whether the link at `path` stands and leads to the whole object."""
        link = f"{self.root}/{path}"
        try:
            os.stat(link if cell else f"{link}/{MANIFEST}")
            return os.readlink(link) == self._link_text(link, digest, cell, file)
        except OSError:
            return False

    def link(self, path: str, digest: str, *, cell: bool = False, file: str = CELL) -> None:
        """Point the link at `path` at an object, in one step."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self._link_text(str(link), digest, cell, file))
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        fresh.replace(link)

    def clear(self, path: str) -> None:
        """Take away what stands at `path`: a link is removed, a foreign file or folder goes to quarantine."""
        place = self.root / path
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            target = self.root / "quarantine" / f"{place.name}-{uuid.uuid4().hex[:8]}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place, target)

    def _link_text(self, link: str, digest: str, cell: bool, file: str) -> str:
        prefix = _prefix(os.path.dirname(link), os.fspath(self.root), os.fspath(self.store.objects))
        return f"{prefix}/{digest}/{file}" if cell else f"{prefix}/{digest}"


@functools.cache
def _prefix(folder: str, root: str, objects: str) -> str:
    """Return what links in a folder of a view begin with.

    Inside the checkout links are relative, so that it can be moved; to a shared store they are absolute. `results/` may
    itself be a link to a larger disk: then its real place counts as inside, too.
    """
    real = os.path.realpath(objects)
    bases = [os.path.realpath(root), os.path.realpath(Path(root).absolute().parents[1])]
    inside = any(os.path.commonpath([real, base]) == base for base in bases)
    return os.path.relpath(real, os.path.realpath(folder)) if inside else real


def write_manifest(folder: Path) -> None:
    """Write the list of a folder's files with their sizes (bytes) and sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def _host() -> str:
    return socket.gethostname().replace("~", "-")


def _alive(pid: int) -> bool:
    """Return whether a process runs; one that is dead but not yet reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def drop(root: Path, paths: Sequence[Path]) -> list[Path]:
    """Delete the objects behind links at or below `paths`, and the links; returns the links that went.

    root: `results/store`. Raises InputError, before anything is deleted, for a path that is no link below it, or a link
    to something else than an object.
    """
    found = {link: _object(link) for path in paths for link in _links(root, path)}
    for link, folder in found.items():
        if folder.is_dir():
            Store(folder.parent).remove(folder.name)
        link.unlink()
    return list(found)


def _links(root: Path, path: Path) -> list[Path]:
    """Return the links at or below a path."""
    place = path.parent.resolve() / path.name if path.is_symlink() else path.resolve()
    if not place.is_relative_to(root.resolve()):
        raise InputError(f"{path} is not below {root}; name a link there, a path as in results/store/cells/...")
    links = [place] if place.is_symlink() else [link for link in sorted(place.rglob("*")) if link.is_symlink()]
    if not links:
        raise InputError(f"{path}: no artifact there; name a link below {root}, or a folder of them")
    return links


def _object(link: Path) -> Path:
    """Return the object's folder that a link of the view leads to."""
    target = link.parent / os.readlink(link)
    folder = target.parent if target.name in (CELL, RESPONSES) else target
    if re.fullmatch(r"[0-9a-f]{64}", folder.name):
        return folder
    raise InputError(f"{link} leads to {target}, which is no object of a store; delete that link yourself")
