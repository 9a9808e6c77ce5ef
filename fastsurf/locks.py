"""One writer a folder: an advisory lock of the operating system, which ends with the process that holds it, however that ends."""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import UsageError

NAME = "lock"
HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)  # what the system says of a lock that another holds
AT = 1 << 20  # byte that is locked on Windows, where what is locked can't be read


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other `locked` off the folder, which is made if it is missing, and removed if nothing came into it.

    Where the file system knows no locks (some network drives), nothing is kept off.

    Raises:
        UsageError: another holds it; who, where and since when.
        OSError: the folder can't be written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    file = _open(folder)
    try:
        yield
    finally:
        if sys.platform != "win32":  # before the lock is given back, so that nobody's but ours is removed
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()
        os.close(file)
        with contextlib.suppress(OSError):
            if sys.platform == "win32":  # which removes nothing that is open
                (folder / NAME).unlink()
            for path in missing:
                path.rmdir()


def _open(folder: Path) -> int:
    """The lock's file, locked, and with our name in it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except FileNotFoundError:  # whoever had made the folder removed it
            continue
        try:
            _lock(file)
        except OSError as e:
            if e.errno in HELD:
                os.close(file)
                raise UsageError(f"{folder} is in use by another run{_who(folder)}: wait for it, or choose another --run") from None
        try:
            same = os.path.samestat(os.fstat(file), os.stat(folder / NAME))
        except FileNotFoundError:
            same = False
        if same:
            with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
                os.ftruncate(file, 0)
                os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode())
            return file
        os.close(file)  # the one before removed it between our opening and locking it


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, AT, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _who(folder: Path) -> str:
    """` (process 12 on host, for 0:34)`, or nothing where that can't be told."""
    try:
        owner = json.loads((folder / NAME).read_text())
        minutes = max(time.time() - float(owner["since"]), 0.0) / 60.0
        return f" (process {int(owner['pid'])} on {owner['host']}, for {minutes:.0f} min)"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
