"""Files that are whole or not there: nothing of the user's is ever half overwritten."""

import contextlib
import io
import os
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
    finally:
        part.unlink(missing_ok=True)


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
