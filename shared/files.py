"""Files that are whole or absent: atomic replacement, locks, and disk faults told in one sentence.

Work in progress is called `NAME.partial` and gets its name by one rename, after its bytes have reached the
disk. A kill, a power cut or a full disk therefore leaves the old file, or the new one, never half of one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import EbbtideError, InputError

try:  # not on Windows
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRITING = {*_DENIED, errno.EIO, errno.EFBIG}  # faults of the file being written, though not named
_HELD: set[tuple[str, int, int]] = set()  # (path, process, thread) that hold a lock


# --- faults of the disk -------------------------------------------------------------------------


def _concerns(error: OSError, path: Path) -> bool:
    """Whether it is about `path`, what is built beside it (`*.partial`) or in it, or a folder above it."""
    if not isinstance(error.filename, str | bytes):
        return error.errno in _WRITING
    named = Path(os.fsdecode(error.filename)).absolute()
    return str(named).startswith(str(path)) or path.is_relative_to(named)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError raised while writing `path` into a sentence.

    Raises:
        EbbtideError: the disk is full, or the disk failed.
        InputError: the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        # A fault of another file (an input read inside the block) is not this one's to explain.
        if error.errno not in _FULL and not _concerns(error, path.absolute()):
            raise
        if error.errno in _FULL:
            raise EbbtideError(
                "disk-full", "no space is left on the disk", str(path), "free some space and run again"
            ) from error
        if error.errno in _DENIED:
            raise InputError(
                "read-only",
                "this folder cannot be written to",
                str(path),
                "choose another folder or change its permissions",
            ) from error
        raise EbbtideError("disk-error", f"{error.strerror or error}", str(path), "check the disk") from error


def existing_parent(path: Path) -> Path:
    """`path` itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def require_space(folder: Path, size: int) -> None:
    """Refuse before the work begins when `folder` (which need not exist yet) cannot take `size` bytes.

    Raises:
        EbbtideError: `disk-full`, with what is needed and what is free.
        InputError: `read-only`, when nothing can be created there.
    """
    place = existing_parent(Path(folder))
    if not place.is_dir():
        raise InputError("not-a-folder", "a file is in the way", str(place), "choose another folder")
    with explained(place):
        free = shutil.disk_usage(place).free
        # os.access lies for the superuser and on network disks: only creating a file tells.
        with tempfile.TemporaryFile(dir=place):
            pass
    if free < size:
        raise EbbtideError(
            "disk-full",
            f"{size / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free",
            str(place),
            "free some space or choose another disk",
        )


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise InputError `output-exists` when something is at `path` and it may not be overwritten.
    An empty folder is nothing."""
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not (overwrite or empty):
        raise InputError("output-exists", "the output exists already", str(path), "pass --overwrite")


# --- durable writing ----------------------------------------------------------------------------


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder (which makes renames in it survive a power cut)."""
    if os.name == "nt" and path.is_dir():  # pragma: no cover - Windows cannot open folders
        return
    handle = os.open(
        path, os.O_RDONLY if path.is_dir() else os.O_RDWR
    )  # Windows syncs only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; nothing there is fine. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where `path` is built before it is whole."""
    return path.with_name(path.name + ".partial")


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a `*.partial` path to write to; it becomes `path` when the block ends without an error.

    Args:
        path: the file to be; an older one stays until the new one is whole, and stays if it never is.

    Raises:
        EbbtideError, InputError: full disk, read-only folder (see `explained`), another process at it.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with replace_atomically(out) as partial:
        ...     _ = partial.write_text("a,b")
        >>> out.read_text()
        'a,b'
    """
    path = Path(path)
    partial = partial_of(path)
    with locked(path):  # two processes would rename each other's halves
        try:
            with explained(path):
                remove(partial)
                yield partial
                flush_to_disk(partial)
                os.replace(partial, path)
                flush_to_disk(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


# --- locks --------------------------------------------------------------------------------------


def _busy(path: Path, holder: str) -> InputError:
    return InputError(
        "folder-locked",
        f"another process is working here{holder}",
        str(path),
        "wait until it ends or choose another folder",
    )


def _holder(lock: Path) -> tuple[str, int | None]:
    """(host, process id) written in a lock file; ("", None) when it cannot be told."""
    try:
        noted = json.loads(lock.read_text())
        return str(noted["host"]), int(noted["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", None


def _told(lock: Path) -> str:
    host, pid = _holder(lock)
    return "" if pid is None else f" (process {pid} on {host})"


def _alive(pid: int) -> bool:
    if os.name == "nt":  # pragma: no cover - there signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _take_by_flock(lock: Path) -> int | None:
    """An open file that holds the lock; None where the file system has no flock.
    The kernel lets go of it when its process dies, however it dies."""
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise _busy(lock.with_suffix(""), _told(lock)) from None
        except OSError:
            os.close(handle)
            return None
        # The last holder may have removed the name between our open and our flock: then lock the new file.
        if os.path.exists(lock) and os.path.samestat(os.fstat(handle), os.stat(lock)):
            return handle
        os.close(handle)


def _abandoned(lock: Path) -> bool:
    """Whether its holder is a dead process of this machine, or died before it could sign."""
    host, pid = _holder(lock)
    if pid is not None:
        return host == socket.gethostname() and not _alive(pid)
    with suppress(OSError):
        return time.time() - lock.stat().st_mtime > 60
    return True


def _take_by_creation(lock: Path) -> int:
    """The fallback: whoever creates the file holds the lock; the file of a dead process of this machine
    is taken over."""
    for _ in range(2):
        try:
            return os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            if not _abandoned(lock):
                break
            lock.unlink(missing_ok=True)
    raise _busy(lock.with_suffix(""), _told(lock))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `FOLDER.lock` for the length of the block. The same thread may lock again within it.

    Raises:
        InputError: `folder-locked`, when another process or thread holds it; its process is named.
    """
    lock = Path(folder).resolve()
    lock = lock.with_name(lock.name + ".lock")
    name = (str(lock), os.getpid(), threading.get_ident())
    if name in _HELD:
        yield
        return
    with explained(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _take_by_flock(lock) if fcntl is not None else None
        if handle is None:
            handle = _take_by_creation(lock)
    try:
        with explained(lock.parent):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        _HELD.add(name)
        yield
    finally:
        _HELD.discard(name)
        # Remove the name first, while still holding it: a waiter that opened it sees that it is gone. A
        # name that cannot be removed does no harm, because the lock itself ends with the handle.
        try:
            with suppress(OSError):
                lock.unlink()
        finally:
            os.close(handle)
