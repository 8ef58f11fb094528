"""The store and the view: whole or nothing, whatever happens, and links that anybody may delete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import make_view

from propgen import store as module
from propgen.errors import InputError
from propgen.files import write_text
from propgen.store import CELL, MANIFEST, CorruptError, Store, View, drop

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
CHILD = """
import os, signal, sys, time
from pathlib import Path
from propgen import store as module
from propgen.store import Store
store, digest = Store(Path(sys.argv[1])), sys.argv[2]
def build(folder):
    (folder / "part").write_text("one")
{build}
{before}
print(store.make(digest, build), flush=True)
"""


def child(objects: Path, digest: str, build: str = "", before: str = "") -> subprocess.Popen[str]:
    """Start a process that makes an object. build: more of its build function. before: statements before it."""
    code = CHILD.format(build="\n".join(f"    {line}" for line in build.splitlines()), before=before)
    command = [sys.executable, "-c", code, str(objects), digest]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a child prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def writer(text: str) -> Callable[[Path], None]:
    """Return a build function that writes one file."""

    def build(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text(text)

    return build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "objects")


@pytest.fixture
def view(tmp_path: Path) -> View:
    return make_view(tmp_path / "checkout")


# -- making --------------------------------------------------------------------------------------------------------


def test_an_object_is_made_once_and_verified(store: Store) -> None:
    """The first make builds, the second finds; the manifest covers files in subfolders."""
    assert store.make(A, writer("one")) == "made"
    assert store.make(A, writer("two")) == "found"
    assert (store.verify(A) / "sub/file").read_text() == "one"
    assert list(json.loads(store.payload(A).read_text())) == ["sub/file"]
    assert store.listing() == {A}


def test_an_exception_in_build_leaves_nothing(store: Store) -> None:
    """The error comes out, no object and no scratch remains, and the next make succeeds."""

    def fail(folder: Path) -> None:
        (folder / "part").write_text("one")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.make(A, fail)
    assert not store.folder(A).exists()
    assert not list((store.objects / ".tmp").iterdir())
    assert store.make(A, writer("two"), wait=False) == "made"


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("build", "before"),
    [
        pytest.param("os._exit(1)", "", id="exit in build"),
        pytest.param(KILL, "", id="kill in build"),
        pytest.param("", f"module.fsync = lambda path: {KILL}", id="kill between writing and rename"),
    ],
)
def test_a_killed_maker_leaves_nothing_visible(store: Store, build: str, before: str) -> None:
    """After a death at any moment nothing is visible, the next make succeeds at once, and clean() clears the rest."""
    assert child(store.objects, A, build, before).wait() != 0
    assert store.listing() == set()
    assert len(list((store.objects / ".tmp").iterdir())) == 1
    start = time.monotonic()
    assert store.make(A, writer("two"), wait=False) == "made"
    assert time.monotonic() - start < 5
    store.clean()
    assert not list((store.objects / ".tmp").iterdir())
    store.verify(A)


def test_clean_keeps_the_scratch_of_the_living_and_of_other_machines(store: Store) -> None:
    """Only scratch of this machine's dead processes goes, and odd names in its folder do no harm."""
    others = [store.objects / ".tmp" / name for name in ("elsewhere~1~x", "odd", f"{module._host()}~odd~x")]

    def build(folder: Path) -> None:
        for other in others:
            other.mkdir()
        store.clean()
        assert folder.is_dir()
        (folder / "file").touch()

    assert store.make(A, build) == "made"
    assert all(other.is_dir() for other in others)


def test_two_processes_at_once_build_once(store: Store, tmp_path: Path) -> None:
    """Of two makers that start together one builds, and the other waits and finds."""
    count = tmp_path / "count"
    build = f"open({str(count)!r}, 'a').write('x')\ntime.sleep(0.3)"
    before = f"print('ready', flush=True)\nwhile not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    children = [child(store.objects, A, build, before) for _ in range(2)]
    assert [line(process) for process in children] == ["ready", "ready"]
    (tmp_path / "go").touch()
    assert sorted(line(process) for process in children) == ["found", "made"]
    assert [process.wait() for process in children] == [0, 0]
    assert count.read_text() == "x"


def test_whoever_does_not_wait_is_told_busy(store: Store) -> None:
    """With wait=False a make under somebody's lease returns `busy`, and builds nothing."""

    def build(folder: Path) -> None:
        assert store.make(A, pytest.fail, wait=False) == "busy"
        (folder / "file").touch()

    assert store.make(A, build) == "made"


def test_a_timeout_inside_build_is_not_taken_for_busy(store: Store) -> None:
    """A lock that `build` fails to get is an error: `busy` would say that somebody else makes the object."""

    def build(folder: Path) -> None:
        raise module.Timeout("another lock")

    with pytest.raises(module.Timeout):
        store.make(A, build)


def test_a_maker_that_stood_still_leaves_what_was_made_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process loses its lease; when it goes on it finds the other's object and does not replace it."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.6)
    stopped = child(store.objects, A, "print('in', flush=True)\ntime.sleep(0.5)", "module.LEASE_SECONDS = 0.6")
    assert line(stopped) == "in"
    stopped.send_signal(signal.SIGSTOP)
    try:
        assert store.make(A, writer("two")) == "made"
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert line(stopped) == "found"
    assert stopped.wait() == 0
    assert (store.verify(A) / "sub/file").read_text() == "two"


def test_a_folder_without_its_payload_is_replaced(store: Store) -> None:
    """A folder that holds no manifest was never whole, so it does not count and makes way."""
    store.folder(A).mkdir(parents=True)
    (store.folder(A) / "stray").touch()
    assert store.make(A, writer("two")) == "made"
    assert sorted(path.name for path in store.verify(A).iterdir()) == [MANIFEST, "sub"]


def test_a_full_disk_leaves_no_scratch_and_earlier_objects_whole(tmp_path: Path) -> None:
    """On a file system of 64 kB a make that does not fit fails cleanly, and succeeds once there is room."""
    inside = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system (unshare --map-root-user --mount)")
    code = f"mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec {sys.executable} -c '{FULL}' {tmp_path}/objects"
    done = subprocess.run([*inside, "sh", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["28", "28", "0", "0", "1", "made"], done.stderr


FULL = """
import os, sys
from pathlib import Path
from propgen.store import Store
store = Store(Path(sys.argv[1]))
small, big = (lambda path, n=n: (path / "file").write_bytes(b"x" * n) and None for n in (1000, 100_000))
store.make("a" * 64, small)
def fails(build):
    try:
        store.make("b" * 64, build)
    except OSError as error:
        print(error.errno)
fails(big)
filler = store.objects / ".filler"
try:
    with filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
except OSError:
    fails(small)
for name in (".tmp", ".locks"):
    print(len(os.listdir(store.objects / name)))
store.verify("a" * 64)
print(len(store.listing()))
filler.unlink()
print(store.make("b" * 64, small))
"""


def test_a_file_size_limit_leaves_no_scratch_and_earlier_objects_whole(store: Store) -> None:
    """A write that the system refuses comes out as OSError, with nothing left behind."""
    store.make(A, writer("one"))
    before = "import resource\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    before += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
    build = "try:\n    (folder / 'big').write_bytes(b'x' * 9000)\nexcept OSError as e:\n    print(e.errno); sys.exit(7)"
    process = child(store.objects, B, build, before)
    assert (line(process), process.wait()) == ("27", 7)
    assert not list((store.objects / ".tmp").iterdir())
    assert not list((store.objects / ".locks").iterdir())
    assert store.listing() == {A}
    store.verify(A)


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """write_text replaces in one step, and leaves no scratch when it fails."""
    path = tmp_path / "folder/text"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


# -- damage --------------------------------------------------------------------------------------------------------


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: os.truncate(folder / "sub/file", 2),
    "altered": lambda folder: _alter(folder / "sub/file"),
    "missing": lambda folder: (folder / "sub/file").unlink(),
    "manifest missing": lambda folder: (folder / MANIFEST).unlink(),
    "manifest garbage": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\x00"),
    "manifest a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "manifest without hashes": lambda folder: (folder / MANIFEST).write_text('{"sub/file": 3}'),
    "manifest without sizes": lambda folder: (folder / MANIFEST).write_text('{"sub/file": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds_damage(store: Store, damage: str) -> None:
    """Whatever happened to a file or the manifest, verify() raises CorruptError that names the place."""
    store.make(A, writer("one"))
    DAMAGE[damage](store.folder(A))
    with pytest.raises(CorruptError, match=str(store.folder(A))):
        store.verify(A)


def test_a_file_that_may_not_be_read_is_not_called_corrupt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared store somebody's private file would otherwise be moved to quarantine."""
    store.make(A, writer("one"))

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "file_sha256", refuse)
    with pytest.raises(PermissionError):
        store.verify(A)


def test_quarantine_moves_the_object_and_its_link_dangles(view: View, tmp_path: Path) -> None:
    """What was corrupt can be looked at, its link shows nothing, and the object can be made again."""
    view.store.make(A, writer("one"))
    view.link("models/m", A)
    place = view.store.quarantine(A, view.root / "quarantine")
    assert (place / "sub/file").read_text() == "one"
    assert not view.shows("models/m", A)
    assert view.store.quarantine(A, view.root / "quarantine") == view.root / "quarantine"
    assert view.store.make(A, writer("two")) == "made"
    assert view.shows("models/m", A)


# -- the view ------------------------------------------------------------------------------------------------------


def test_links_are_relative_inside_the_checkout(view: View) -> None:
    """A checkout can be moved with its store: the links still lead to the objects."""
    view.store.make(A, writer("one"))
    view.link("models/m", A)
    checkout = view.root.parents[1]
    moved = checkout.rename(checkout.with_name("moved"))
    assert not os.readlink(moved / "results/store/models/m").startswith("/")
    assert make_view(moved).shows("models/m", A)


def test_links_to_a_store_elsewhere_in_the_checkout_are_relative(tmp_path: Path) -> None:
    """That holds for any folder of the checkout, not for the default one alone."""
    view = View(tmp_path / "results/store", Store(tmp_path / "own/objects"))
    view.store.make(A, writer("one"))
    view.link("models/m", A)
    assert os.readlink(view.root / "models/m") == f"../../../own/objects/{A}"


def test_links_to_a_shared_store_are_absolute(tmp_path: Path) -> None:
    """Outside the checkout the store stays where it is; and two stores behind one view do not mix."""
    for name in ("shared", "other"):
        view = View(tmp_path / "checkout/results/store", Store(tmp_path / name))
        view.store.make(A, writer(name))
        view.link("models/m", A)
        assert os.readlink(view.root / "models/m") == f"{tmp_path}/{name}/{A}"
        assert view.shows("models/m", A)


@pytest.mark.parametrize("way", ["file", "folder", "link", "stale link"])
def test_a_link_replaces_what_is_in_its_way(view: View, way: str) -> None:
    """A real file, a real folder with content, or another link makes way."""
    view.store.make(A, writer("one"))
    place = view.root / "models/m"
    place.parent.mkdir(parents=True)
    if way == "file":
        place.write_text("in the way")
    elif way == "folder":
        place.mkdir()
        (place / MANIFEST).write_text("in the way")
    else:
        place.symlink_to(view.store.folder(B))
        if way == "stale link":
            place.with_name(f".m.{os.getpid()}").symlink_to("nowhere")
    assert not view.shows("models/m", A)
    view.link("models/m", A)
    assert view.shows("models/m", A)
    assert [path.name for path in place.parent.iterdir()] == ["m"]


def test_a_link_is_replaced_in_one_step(view: View) -> None:
    """Whoever looks while a link is being moved to another object sees the old or the new one, never none."""
    for digest in (A, B):
        view.store.make(digest, writer(digest))
    view.link("models/m", A)
    code = "import os, sys\nfor _ in range(20000): os.stat(sys.argv[1])\nprint('always there')"
    watcher = subprocess.Popen(
        [sys.executable, "-c", code, str(view.root / "models/m")], stdout=subprocess.PIPE, text=True
    )
    while watcher.poll() is None:
        view.link("models/m", B)
        view.link("models/m", A)
    assert line(watcher) == "always there"


@pytest.mark.parametrize("cell", [False, True])
def test_shows_only_a_link_to_the_whole_object(view: View, cell: bool) -> None:
    """A dangling link, a link to another object or to half of one, a plain file and a plain folder show nothing."""
    name = CELL if cell else MANIFEST
    for digest in (A, B, C):
        view.store.make(digest, lambda folder: (folder / CELL).touch(), cell=cell)
    view.link("link", A, cell=cell)
    assert view.shows("link", A, cell=cell)
    assert not view.shows("link", B, cell=cell)
    (view.store.folder(A) / name).unlink()
    assert not view.shows("link", A, cell=cell)
    view.link("gone", C, cell=cell)
    view.store.remove(C)
    assert not view.shows("gone", C, cell=cell)
    (view.root / "file").touch()
    (view.root / "folder").mkdir()
    (view.root / "folder" / MANIFEST).touch()
    assert not any(view.shows(path, A, cell=cell) for path in ("file", "folder", "absent"))


# -- dropping ------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(view: View) -> View:
    """Return a view of a model and two cells."""
    view.store.make(A, writer("one"))
    view.link("models/m", A)
    for digest, name in ((B, "b"), (C, "c")):
        view.store.make(digest, lambda folder: (folder / CELL).touch(), cell=True)
        view.link(f"cells/m/base/seed0/{name}.parquet", digest, cell=True)
    return view


def test_drop_removes_the_objects_behind_a_folder_of_links(full: View) -> None:
    """Links and objects below a folder go, others stay; a link that is named twice goes once."""
    folder = full.root / "cells/m"
    gone = drop(full.root, [folder, folder / "base/seed0/b.parquet"])
    assert [path.name for path in gone] == ["b.parquet", "c.parquet"]
    assert full.store.listing() == {A}
    assert full.shows("models/m", A)
    assert not list((full.store.objects / ".tmp").iterdir())


def test_drop_of_a_dangling_link_removes_the_link(full: View) -> None:
    """Its object is gone already; nothing is created where its store was."""
    away = full.root.parent / "not-mounted"
    (full.root / "gone").symlink_to(away / B)
    assert drop(full.root, [full.root / "gone"]) == [full.root / "gone"]
    assert not (full.root / "gone").is_symlink()
    assert not away.exists()


@pytest.mark.parametrize("bad", ["..", "../outside", "models/m/sub/file", "models/absent", "plain", "objects", "alien"])
def test_drop_refuses_before_anything_is_deleted(full: View, bad: str) -> None:
    """A path outside, one that is no link, and a link to no object are refused, and the good path before it stays."""
    (full.root / "plain").mkdir()
    (full.root / "../outside").symlink_to(full.store.folder(A))
    alien = full.root.parent / "precious"
    alien.mkdir()
    (full.root / "alien").symlink_to(alien)
    with pytest.raises(InputError):
        drop(full.root, [full.root / "models/m", full.root / bad])
    assert full.store.listing() == {A, B, C}
    assert full.shows("models/m", A)
    assert alien.is_dir()
