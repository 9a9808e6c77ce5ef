"""What the poses in a file mean: which way a camera's axes point, and whether they lead from camera to world (c2w) or back (w2c).

Three letters say where x, y and z point in the picture: Right or Left, Down or Up, Forward or Back. OpenCV is RDF, which is what a Capture
holds; OpenGL is RUB. Each loader reads poses as its format has them; here that is undone, and they are read in another way. Where the
poses come out left-handed (det R = -1), so is the world, and its y axis is turned round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .bounds import looking
from .cameras import Capture, View
from .epipolar import Fit, Pair, fit
from .errors import SceneError

AXES = {
    "opencv": "RDF", "opengl": "RUB", "unity": "RUF", "pytorch3d": "LUF", "ldb": "LDB", "rdb": "RDB", "ldf": "LDF", "lub": "LUB",
}  # fmt: skip # the likely ones first
W2C = "-w2c"
CONVENTIONS = (*AXES, *(name + W2C for name in AXES))
NATIVE = {"transforms": "opengl", "llff": "opengl", "strecha": "opencv"}  # formats not named here are COLMAP's: opencv-w2c
MIRROR = np.array([1.0, -1.0, 1.0])  # of a left-handed world
LIKELY = ("opencv", "opengl", "opencv-w2c", "opengl-w2c")  # lines of sight alone can't tell the others from these
FEWEST_MATCHES = 40
MISFIT, CLEAR = 0.3, 0.5  # share of matches that fit: at most so many as read, and at least so many read otherwise, to be sure
ASTRAY, MEETING = 0.5, 0.9  # the same of lines of sight


@dataclass(frozen=True)
class Verdict:
    """Which convention explains a capture best: the one it was read as unless another is clearly better.

    Attributes:
        fits: of matched features, by convention; empty where there are too few.
        looking: share of the cameras that see the point nearest to their lines of sight, by convention.
    """

    best: str
    fits: dict[str, Fit]
    looking: dict[str, float]


def native(format: str) -> str:
    """The convention that a format prescribes."""
    return NATIVE.get(format, "opencv" + W2C)


def reread(c2w: np.ndarray, before: str, after: str) -> np.ndarray:
    """Poses (n, 3, 4) that were read as `before`, read as `after`: camera to world, OpenCV axes, maybe left-handed."""
    stored = c2w * _signs(before)
    if before.endswith(W2C) != after.endswith(W2C):
        stored = _inverse(stored)
    return np.asarray(stored * _signs(after))


def apply(capture: Capture, convention: str) -> Capture:
    """The capture with its poses read as `convention` has it; `format` leaves them as the format does.

    Raises:
        SceneError: the poses are left-handed (with `format`), or some of them are.
    """
    if convention in ("format", native(capture.format)) and not left_handed(capture):
        return capture
    if convention == "format":
        raise SceneError(
            f"pose of {capture.views[0].name} is left-handed (mirrored: det R = -1), and so are all others: want right-handed axes; "
            "--set scene.convention=auto finds out which they are"
        )
    poses = reread(np.stack([view.c2w for view in capture.views]), native(capture.format), convention)
    mirrored = bool(np.linalg.det(poses[0, :, :3]) < 0)
    poses = MIRROR[:, None] * poses if mirrored else poses
    note = f"poses are read as {convention}" + (f", not as {native(capture.format)}" if convention != native(capture.format) else "")
    points, box = capture.points, capture.box
    if mirrored:
        note += "; they are left-handed, so the world's y axis is turned round"
        points = None if points is None else points * MIRROR
        box = None if box is None else (np.asarray(box[0]) * MIRROR, box[1])
    views = tuple(replace(view, c2w=pose) for view, pose in zip(capture.views, poses, strict=True))
    return replace(capture, views=views, points=points, box=box, notes=(*capture.notes, note), convention=convention)


def left_handed(capture: Capture) -> bool:
    """Whether all of its poses are; loaders refuse a capture in which some are."""
    return bool(np.linalg.det(capture.views[0].c2w[:, :3]) < 0)


def judge(views: Sequence[View], current: str, pairs: Sequence[Pair] | None) -> Verdict:
    """Read poses in every convention and see which fits, by matched features (`epipolar.find_matches`) where there are enough of them.

    Args:
        views: read as `current`.
    """
    poses = other_poses(np.stack([view.c2w for view in views]), current)
    meets = {name: looking([replace(view, c2w=pose) for view, pose in zip(views, poses[name], strict=True)]) for name in {current, *LIKELY}}
    if sum(len(pair.a) for pair in pairs or ()) >= FEWEST_MATCHES:
        fits = {name: fit(pairs or (), p) for name, p in poses.items()}
        best = max(fits, key=lambda name: fits[name].share)
        sure = fits[current].share <= MISFIT and fits[best].share >= CLEAR
        return Verdict(best if sure else current, fits, meets)
    best = max(LIKELY, key=lambda name: meets[name])
    return Verdict(best if meets[current] <= ASTRAY and meets[best] >= MEETING else current, {}, meets)


def other_poses(given: np.ndarray, current: str) -> dict[str, np.ndarray]:
    """Poses (n, 3, 4) that were read as `current`, under every convention; mirrored where that makes them right-handed."""
    found = {name: reread(given, current, name) for name in CONVENTIONS}
    return {name: MIRROR[:, None] * p if np.linalg.det(p[0, :, :3]) < 0 else p for name, p in found.items()}


def suggestion(views: Sequence[View], current: str, match: Callable[[], Sequence[Pair] | None]) -> str:
    """What to add to the message that a scene can't be used, where its lines of sight say that poses are read the wrong way.

    Args:
        views: read as `current`.
        match: finds matched features, which tell which way is right; asked only then.
    """
    verdict = judge(views, current, None)
    if verdict.best == current:
        return ""
    matched = judge(views, current, match())
    if matched.fits and matched.best != current:
        share = matched.fits[matched.best].share
        return f" (poses are read as {current}; read as {matched.best}, {share:.0%} of matched features fit: {_flag(matched.best)})"
    others = [name for name in LIKELY if verdict.looking[name] >= MEETING]
    return f" (poses are read as {current}; the lines of sight meet when they are read as {' or '.join(others)}: try {_flag(others[0])})"


def found_out(views: Sequence[View], format: str, pairs: Sequence[Pair] | None) -> str:
    """The convention that the photographs speak for, with certainty.

    Args:
        views: read as the format has it, maybe left-handed.

    Raises:
        SceneError: none does.
    """
    verdict = judge(views, native(format), pairs)
    if verdict.fits:
        if verdict.fits[verdict.best].share >= CLEAR:
            return verdict.best
        raise SceneError(
            f"scene.convention=auto: no way to read the poses fits the photographs (at best {verdict.fits[verdict.best].share:.0%} of the "
            "matched features do): name the convention, or let fastsurf poses find the cameras"
        )
    if np.linalg.det(views[0].c2w[:, :3]) < 0 or verdict.looking[verdict.best] < MEETING:
        raise SceneError("scene.convention=auto: too few matched features to tell how poses are to be read: name the convention")
    return verdict.best


def _flag(name: str) -> str:
    return f"--set scene.convention={name}"


def _signs(convention: str) -> np.ndarray:
    """(4,) factors of a pose's columns."""
    letters = AXES[convention.removesuffix(W2C)]
    return np.array([*(1 if letter == opencv else -1 for letter, opencv in zip(letters, AXES["opencv"], strict=True)), 1])


def _inverse(poses: np.ndarray) -> np.ndarray:
    rotations = poses[:, :, :3].transpose(0, 2, 1)
    return np.concatenate([rotations, -rotations @ poses[:, :, 3:]], axis=-1)
