"""Files that other people made, read within limits or refused in one line. Nothing in them is ever run: no pickle, no code.

What is read is a regular file (a pipe would never end), and what it claims to hold is compared with what it can hold before memory is
asked for. docs/safety.md lists the limits and what was tried against them.
"""

import contextlib
import functools
import json
import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import FastsurfError, SceneError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MOST_PIXELS = 200_000_000  # of a picture
MOST_SIDE = 1 << 20  # pixels of a camera's width or height
MOST_NUMBER = 1e12  # of coordinates and lens parameters; their products stay far from overflow
MOST_TEXT = 1 << 28  # bytes of a text that is taken to pieces as a whole: JSON, TOML
MOST_ARRAYS = 1 << 31  # bytes that the arrays of a file unpack to
MOST_DEPTH = 32  # of lists and tables in each other
LONGEST_NAME = (240, 2000)  # bytes of a part of a path, and of a path
PICTURES = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "HEIF")  # Pillow knows more, and has some of them drawn by other programs


def read_text(file: Path, error: type[FastsurfError] = SceneError, most: int | None = None) -> str:
    """The text of a file.

    Args:
        most: bytes.

    Raises:
        error: unreadable, longer, or not text.
    """
    try:
        if not file.is_file():
            raise OSError("no such file" if not file.exists() else "not a regular file")
        if most is not None and file.stat().st_size > most:
            raise OSError(f"of {file.stat().st_size} bytes, want at most {most}")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise error(f"{file}: can't be read as text ({e})") from None


def read_json(file: Path, error: type[FastsurfError] = SceneError) -> Any:
    """What a JSON file holds.

    Raises:
        error: unreadable, not JSON, or nested too deeply.
    """
    return parse_json(read_text(file, error, MOST_TEXT), str(file), error)


def parse_json(text: str | bytes, source: str, error: type[FastsurfError]) -> Any:
    """What a JSON text holds; errors name `source`."""
    try:
        tree = json.loads(text)
        level, depth = [tree], 0
        while level:
            level = [v for x in level if isinstance(x, dict | list) for v in (x.values() if isinstance(x, dict) else x)]
            depth += 1
            if depth > MOST_DEPTH:
                raise RecursionError
    except RecursionError:
        raise error(f"{source}: not readable as JSON (nested more than {MOST_DEPTH} deep)") from None
    except ValueError as e:
        raise error(f"{source}: not readable as JSON ({e})") from None
    return tree


def read_arrays(file: Path, error: type[FastsurfError] = SceneError) -> "dict[str, np.ndarray]":
    """The arrays of numbers of an .npz file by their names, that of an .npy file under the name of nothing.

    Raises:
        error: unreadable, other things than numbers in it, or more of them than MOST_ARRAYS.
    """
    kind = file.suffix.removeprefix(".") or "npz"
    try:
        if not file.is_file():
            raise OSError("not a regular file")
        if kind == "npy":
            with open(file, "rb") as stream:
                return {"": _array(stream, file.stat().st_size)}
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            size = sum(info.file_size for info in members)
            if size > MOST_ARRAYS:
                raise ValueError(f"unpacks to {size} bytes, want at most {MOST_ARRAYS}")
            arrays = {}
            for info in members:
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = _array(member, info.file_size)
            return arrays
    except Exception as e:  # zipfile, its decompressors and NumPy raise many kinds on broken files
        raise error(f"{file}: not readable as {kind} ({type(e).__name__}: {e})") from None


def _array(stream: IO[bytes], size: int) -> "np.ndarray":
    """The array in a file of `size` bytes, which its header must agree with."""
    import numpy as np

    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"holds {dtype}, want numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > min(size, MOST_ARRAYS):
        raise ValueError(f"claims an array of {shape} in {size} bytes")
    values = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


@contextlib.contextmanager
def picture(file: Path, what: str = "picture", do: str = "replace the file") -> "Iterator[Image]":
    """A picture to look at, not decoded yet. Only Pillow's work belongs into the block: whatever is raised there is the picture's fault.

    Args:
        what: the picture is, in words; `do`: what helps.

    Raises:
        SceneError: missing, none of PICTURES, damaged, or of more than MOST_PIXELS.
    """
    pillow = _pillow()
    try:
        if not file.is_file():
            raise OSError("no such file" if not file.exists() else "not a regular file")
        with pillow.open(file, formats=[name for name in PICTURES if name in pillow.OPEN]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height}, want at most {MOST_PIXELS / 1e6:.0f} million pixels")
            yield image
    except FastsurfError:
        raise
    except Exception as e:  # Pillow raises many kinds on broken files
        raise SceneError(f"{what} {file} can't be read as an image ({e or type(e).__name__}): {do}") from None


@functools.cache
def _pillow() -> Any:
    """Pillow's Image, with one limit for whoever uses it in this process, a reader of textures for instance."""
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 # which register themselves, as pillow-heif does elsewhere

    Image.preinit()
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    return Image
