"""From a folder to a Capture, whatever the cameras are written in. Each module converts to our conventions at its border.

A module has `WANTED` (what it looks for, in words), `find(folder)` (the camera file or folder, or None) and
`load(scene, found, masks, outside)`.
"""

import difflib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..cameras import Capture
from ..errors import SceneError, UsageError
from . import blendedmvs, colmap, idr, llff, middlebury, strecha, transforms
from .checks import SUFFIXES


class Format(Protocol):
    """What each module here offers."""

    WANTED: str

    def find(self, folder: Path, /) -> Path | None: ...

    def load(self, scene: Path, found: Path, masks: str, outside: bool, /) -> Capture: ...


FORMATS: dict[str, Format] = {
    "transforms": transforms, "colmap": colmap, "idr": idr, "blendedmvs": blendedmvs, "middlebury": middlebury, "strecha": strecha,
    "llff": llff,
}  # fmt: skip # in order of preference where a folder holds several


def load(path: Path, format: str | None = None, masks: str = "auto", outside: bool = False) -> Capture:
    """Read photographs and cameras of a folder, or of the camera file that `path` names.

    Args:
        format: one of FORMATS; None: the first that is found.
        masks: auto (those found), ignore, or a folder of masks.
        outside: photographs may lie outside the folder, where its files name them.

    Raises:
        UsageError: an unknown format.
        SceneError: no cameras there, or cameras and photographs that can't be used.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FORMATS)}"
        raise UsageError(f"unknown format {format!r}; {hint}")
    if not path.exists():
        raise SceneError(f"no such folder: {path}")
    if path.is_file():
        return _load_file(path, format, masks, outside)
    found = [format] if format is not None else sniff(path)
    where = FORMATS[found[0]].find(path) if found else None
    if where is None:
        raise SceneError(_nothing_found(path, [format] if format is not None else list(FORMATS)))
    with np.errstate(all="ignore"):  # what is not finite is refused
        capture = FORMATS[found[0]].load(path, where, masks, outside)
    if len(found) > 1:
        others = f"took {found[0]}; the folder also holds {', '.join(found[1:])} (--format picks one)"
        capture = replace(capture, notes=(others, *capture.notes))
    return capture


def sniff(path: Path) -> list[str]:
    """Names of the formats that a folder holds, the preferred one first."""
    return [name for name in FORMATS if FORMATS[name].find(path) is not None]


def _load_file(file: Path, format: str | None, masks: str, outside: bool) -> Capture:
    """Cameras from a file that the user picked."""
    suffixes = {".json": "transforms", ".npz": "idr", ".npy": "llff", ".txt": "middlebury"}
    format = format or suffixes.get(file.suffix)
    if format is None or format not in suffixes.values():
        raise SceneError(f"{file}: want a folder of photographs with cameras, or a camera file ({', '.join(suffixes)})")
    with np.errstate(all="ignore"):
        return FORMATS[format].load(file.parent, file, masks, outside)


def _nothing_found(path: Path, formats: list[str]) -> str:
    """What was looked for, what is there instead, and what to do."""
    looked = "; ".join(f"{name}: {FORMATS[name].WANTED}" for name in formats)
    entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    kinds = Counter(p.suffix.lower() or "no suffix" for p in entries if p.is_file())
    folders = [p for p in entries if p.is_dir()]
    found = ", ".join([f"{n} {kind}" for kind, n in kinds.most_common(5)] + [f"{p.name}/" for p in folders[:6]]) or "nothing"
    message = f"no cameras in {path}: looked for {looked}; found {found}"
    inside = [p.name for p in folders if sniff(p)]
    if inside:
        return f"{message}. Cameras are one level down: try {path / inside[0]}" + (f" (or {', '.join(inside[1:4])})" if inside[1:] else "")
    photographs = next((p for p in (path, *folders) if any(f.suffix.lower() in SUFFIXES for f in p.iterdir())), None)
    if photographs is not None and len(formats) > 1:
        message += f". Photographs need cameras: `fastsurf poses {path} -o {path.with_name(path.name + '_scene')}` finds them"
    return message
