"""Files that are whole or not there: nothing of the user's is ever half overwritten."""

import contextlib
import glob
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when it is complete; until then an older one stays. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as e:
        e.filename = e.filename or str(path)  # a full disk names no file
        raise
    finally:
        part.unlink(missing_ok=True)


def sweep(*paths: Path) -> None:
    """Remove what writers of these files, or of any in these folders, left behind that were killed on this machine."""
    for path in paths:
        for part in path.glob(".*.part") if path.is_dir() else path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            number = part.name.removesuffix(".part").rpartition(".")[2]
            if number.isdecimal() and not _alive(int(number)):
                with contextlib.suppress(OSError):
                    part.unlink()


def _alive(process: int) -> bool:
    """Whether it may still be writing; this process isn't yet."""
    if process == os.getpid():
        return False
    if sys.platform == "win32":
        return True  # there is no asking without consequences
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def check_writable(folder: Path) -> None:
    """Before hours are spent: files can be made in the folder, or in the nearest one above it that exists.

    Raises:
        OSError: they can't, and why.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".fastsurf.{os.getpid()}.part"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o644))
    except OSError as e:
        raise OSError(e.errno, f"can't write there: {e.strerror}", str(folder)) from None
    probe.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` so that the file is either the old one or the new one."""
    with whole(path) as file:
        file.write(data)


def png(picture: Any, **notes: str) -> bytes:
    """(h, w), (h, w, 3) or (h, w, 4) uint8, or (h, w) uint16, as a PNG file; `notes` stand in its text."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    for name, note in notes.items():
        text.add_text(name, note)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
