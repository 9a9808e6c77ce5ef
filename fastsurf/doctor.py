"""Whether a scene can work, before an hour is spent: what is wrong with it, how sure that is, and what to do.

`findings` looks at cameras, masks and pixels, a second for a hundred photographs; `convention` also at matched features, which takes some.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .bounds import COMMON_VIEW
from .cameras import Camera, unproject
from .conventions import judge, native
from .epipolar import find_matches
from .quality import alike, measure, outliers, residuals
from .scene import Scene

Severity = Literal["broken", "doubtful", "note"]
SEVERITIES: tuple[Severity, ...] = ("broken", "doubtful", "note")  # the worst first

FEWEST_VIEWS = 8  # with fewer, surfaces between the views are guessed
ONE_SIDED = 120.0  # degrees between the outermost cameras, seen from the scene; below, the back stays unseen
GAP = 60.0  # degrees from some direction to the nearest camera's, from which a note says so
BLUR, SPREAD = 2.5, 5.0  # doublings of sharpness below the neighbours' (of ten real sets 1.7 at most), and robust standard deviations
STOPS, STOPS_UNMASKED = 2.0, 3.0  # of light away from the neighbours' (of the ten 1.6, and 2.1 without masks)
SAME = 0.15  # bytes that thumbnails of one photograph saved twice differ by (of the ten, different ones: 0.35 and more)
LIKE = 3.0  # the same of photographs taken twice (temple: 0.35)
SMALL_MASK, LARGE_MASK = 0.002, 0.98  # of a photograph
BORDER = 0.75  # of a border inside the mask: the object can't be there
SMALL_BOX = 0.1  # of a picture's smaller side, the width of the scene box
WIDE, NARROW = 140.0, 2.0  # degrees of a lens that is no fisheye
SQUARE, OFF_MIDDLE = 1.25, 0.25  # fx to fy; principal point from the middle, in widths
BENT = 0.5  # of the distance from the middle, that a lens may move a corner
MISSED = 0.3  # share of matches that fit, below which poses and photographs don't belong together
NAMED = 3  # photographs, before "and 5 more"


@dataclass(frozen=True)
class Finding:
    """One thing about a scene. `what` is a word or two, `found` says it in a line, `fix` is the flag or what else to do."""

    severity: Severity
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.found}; {self.fix}" if self.fix else self.found


def findings(scene: Scene) -> list[Finding]:
    """What cameras, masks and pixels tell, the worst first."""
    found = [*_convention(scene), *_box(scene), *_coverage(scene), *_masks(scene), *_lenses(scene), *_photographs(scene)]
    return worst_first(found)


def examine(scene: Scene, threads: int = 1) -> tuple[list[Finding], dict[str, object]]:
    """`findings` and `convention` together: lines of sight have no say where features have."""
    poses, facts = convention(scene, threads)
    found = [f for f in findings(scene) if f.what != "convention" or "matches" not in facts]
    return worst_first([poses, *found]), facts


def worst_first(found: Sequence[Finding]) -> list[Finding]:
    """The same, by severity."""
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def convention(scene: Scene, threads: int = 1) -> tuple[Finding, dict[str, object]]:
    """Whether the poses, read as they are, agree with features of the photographs, and the numbers behind that."""
    views = tuple(scene.capture.views[i] for i in scene.train)
    current = scene.capture.convention or native(scene.capture.format)
    pairs = find_matches(views, [scene.images[i].numpy() for i in scene.train], threads)
    verdict = judge(views, current, pairs)
    own = verdict.fits.get(current)
    facts: dict[str, object] = {"read_as": current, "best": verdict.best, "looking": round(verdict.looking[current], 3)}
    if own is None:
        why = "pycolmap is missing or failed" if pairs is None else "the photographs have too few features in common"
        text = f"poses are read as {current}; {why}, so only the lines of sight speak for it: {verdict.looking[current]:.0%} meet"
        return Finding("note", "convention", text), facts
    facts |= {"matches": own.matches, "pixels": round(own.distance, 3), "share": round(own.share, 4)}
    said = f"{own.share:.0%} of {own.matches} matched features fit (median {own.distance:.2g} pixels from their epipolar lines)"
    if verdict.best != current:
        other = verdict.fits[verdict.best]
        text = f"poses are read as {current}, and {said}; read as {verdict.best} {other.share:.0%} do ({other.distance:.2g} pixels)"
        return Finding("broken", "convention", text, f"--set scene.convention={verdict.best}"), facts
    if own.share < MISSED:
        text = f"poses and photographs don't fit together: {said}, and no other convention does better"
        return Finding("doubtful", "poses", text, "check the order of the photographs, or let fastsurf poses find the cameras"), facts
    return Finding("note", "convention", f"poses are {current}: {said}"), facts


def camera_positions(scene: Scene) -> np.ndarray:
    """Where the training cameras stand in the scene, (n_train, 3)."""
    return scene.to_scene(np.stack([scene.capture.views[i].center for i in scene.train]))


def widest_angle(positions: np.ndarray) -> float:
    """Largest angle between two of the positions (n, 3), seen from the origin, degrees: 180 all round, less from one side."""
    towards = _unit(positions)
    return float(np.degrees(np.arccos(np.clip((towards @ towards.T).min(), -1, 1))))


def largest_gap(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """The direction (3,) furthest from those of all positions (n, 3), seen from the origin, and how many degrees that is."""
    k = np.arange(2000) + 0.5
    z, turn = 1 - k / 1000, k * np.pi * (3 - np.sqrt(5))
    sphere = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], -1)
    nearest = (sphere @ _unit(positions).T).max(-1)
    return float(np.degrees(np.arccos(np.clip(nearest.min(), -1, 1)))), sphere[int(nearest.argmin())]


def object_shares(scene: Scene) -> list[float]:
    """Share of each training view's pixels that its mask calls object; empty without masks."""
    return [] if scene.masks is None else [float((scene.masks[i] > 127).float().mean()) for i in scene.train]


def _convention(scene: Scene) -> list[Finding]:
    """What the lines of sight tell, where they leave no doubt and most views miss the box."""
    if 2 * len(scene.blind) < len(scene.train):
        return []
    current = scene.capture.convention or native(scene.capture.format)
    verdict = judge(tuple(scene.capture.views[i] for i in scene.train), current, None)
    if verdict.best == current:
        return []
    own, other = verdict.looking[current], verdict.looking[verdict.best]
    text = f"poses are read as {current}, and {own:.0%} of the cameras look at one scene; read as {verdict.best} {other:.0%} do"
    return [Finding("broken", "convention", text, f"--set scene.convention={verdict.best}")]


def _box(scene: Scene) -> list[Finding]:
    found, n = [], len(scene.train)
    if scene.blind:
        text = f"{len(scene.blind)} of {n} training views don't see the scene box; the first is {_name(scene, scene.blind[0])}"
        severity: Severity = "broken" if 2 * len(scene.blind) >= n else "doubtful"
        found.append(Finding(severity, "box", text, "--set scene.center=[X,Y,Z] --set scene.radius=R"))
    positions = camera_positions(scene)
    inside = int(np.sum(np.abs(positions).max(-1) < 1))
    if inside:
        closest = float(np.quantile(np.linalg.norm(positions, axis=-1), 0.05)) * scene.radius
        fix = f"--set scene.radius={0.65 * closest:.3g}" if closest > 0 else "--set scene.center=[X,Y,Z] --set scene.radius=R"
        found.append(Finding("doubtful", "box", f"{inside} of {n} cameras stand inside the scene box", fix))
    views = [scene.capture.views[i] for i in scene.train]
    depths = np.maximum(np.linalg.norm(positions, axis=-1), 1e-9)
    widths = [2 * max(v.camera.focal) / d / min(v.camera.width, v.camera.height) for v, d in zip(views, depths, strict=True)]
    share = float(np.median(widths))  # of a picture's smaller side
    if share < SMALL_BOX:
        text = f"the scene box is only {share:.1%} as wide as a typical photograph"
        found.append(Finding("doubtful", "box", text, f"--set scene.radius={scene.radius * 0.5 / share:.3g}"))
    if scene.box_source == COMMON_VIEW:
        text = "the scene box is a guess from the cameras alone"
        found.append(Finding("note", "box", text, "look at a preview, set scene.center and scene.radius if it is wrong"))
    return found


def _coverage(scene: Scene) -> list[Finding]:
    n, positions = len(scene.train), camera_positions(scene)
    found = []
    if n < 3:
        found.append(Finding("broken", "views", f"only {n} photographs to learn from", "add photographs, or hold none out: --holdout 0"))
    elif n < FEWEST_VIEWS:
        text = f"only {n} photographs to learn from: expect holes and bumps"
        found.append(Finding("doubtful", "views", text, f"add photographs: {FEWEST_VIEWS} or more are better"))
    angle, (gap, towards) = widest_angle(positions), largest_gap(positions)
    if angle < ONE_SIDED:
        text = f"the cameras span only {angle:.0f} degrees round the scene: surfaces that none of them sees are made up"
        found.append(Finding("note", "coverage", text, "photograph the other sides too, or --set mesh.closed=false"))
    elif gap > GAP:
        where = ", ".join(f"{x:.2f}" for x in towards)
        text = f"no camera stands within {gap:.0f} degrees of the direction ({where}): what can only be seen from there is made up"
        found.append(Finding("note", "coverage", text))
    return found


def _masks(scene: Scene) -> list[Finding]:
    if scene.masks is None:
        return []
    shares, n = list(zip(scene.train, object_shares(scene), strict=True)), len(scene.train)
    kinds = [  # which views, what is to be said of them, what to do
        ([i for i, share in shares if share == 0], "are empty", "replace them, or take these photographs out"),
        ([i for i, share in shares if 0 < share < SMALL_MASK], f"show less than {SMALL_MASK:.1%} of the photograph", "check them"),
        ([i for i, share in shares if share > LARGE_MASK], "are bright nearly everywhere", "replace them, or --masks ignore"),
        (
            [i for i, share in shares if share <= LARGE_MASK and _fills_border(scene, i, share)],
            "look inverted, they fill the border more than the picture", "swap black and white in them, or --masks ignore",
        ),
    ]  # fmt: skip
    found = [(f"{len(views)} of {n} masks {what}: {_names(scene, views)}", fix) for views, what, fix in kinds if views]
    return [Finding("doubtful", "masks", text, fix) for text, fix in found]


def _fills_border(scene: Scene, view: int, share: float) -> bool:
    assert scene.masks is not None
    bright = scene.masks[view] > 127
    border = float(torch.cat([bright[0], bright[-1], bright[:, 0], bright[:, -1]]).float().mean())
    return border > BORDER and border > share


def _lenses(scene: Scene) -> list[Finding]:
    found = []
    for camera, uses in Counter(scene.capture.views[i].camera for i in scene.train).items():
        named = f"{camera.model} of {uses} photographs ({camera.width}x{camera.height})"
        found += [Finding("doubtful", "lens", f"{named}: {odd}", "check the intrinsics: are they for photographs of this size?")
                  for odd in odd_lens(camera)]  # fmt: skip
    return found[:NAMED]


def odd_lens(camera: Camera) -> list[str]:
    """What no lens is likely to be, one line each."""
    (fx, fy), (cx, cy), (w, h) = camera.focal, camera.principal, (camera.width, camera.height)
    odd, fisheye = [], "FISHEYE" in camera.model or camera.model in ("FOV", "EUCM", "DIVISION", "SIMPLE_DIVISION")
    angle = float(np.degrees(2 * np.arctan(0.5 * w / fx)))
    if not fisheye and not NARROW < angle < WIDE:
        odd.append(f"it sees {angle:.3g} degrees across, with a focal length of {fx:.4g} pixels")
    if not 1 / SQUARE < fx / fy < SQUARE:
        odd.append(f"focal lengths of {fx:.4g} and {fy:.4g} pixels make oblong pixels")
    off = max(abs(cx - w / 2) / w, abs(cy - h / 2) / h)
    if off > OFF_MIDDLE:
        odd.append(f"the principal point ({cx:.4g}, {cy:.4g}) is {off:.0%} of the picture from its middle")
    if not camera.is_pinhole and not fisheye:
        x, y = np.meshgrid(np.linspace(0.5, w - 0.5, 9), np.linspace(0.5, h - 0.5, 9))
        border = np.stack([x, y], -1).reshape(-1, 2)
        straight = (border - camera.principal) / camera.focal
        plane = unproject(camera, border)
        if not np.isfinite(plane).all():
            odd.append(f"its distortion leaves {np.mean(~np.isfinite(plane).all(-1)):.0%} of the picture without a ray")
        else:
            bent = float(np.max(np.linalg.norm(plane - straight, axis=-1) / np.linalg.norm(straight, axis=-1).max()))
            if bent > BENT:
                odd.append(f"its distortion moves pixels by {bent:.0%} of the way from the middle to a corner")
    return odd


def _photographs(scene: Scene) -> list[Finding]:
    """Blurred, dark, bright and repeated ones, and those with one pose."""
    images = [scene.images[i].numpy() for i in scene.train]
    quality = measure(images, None if scene.masks is None else [scene.masks[i].numpy() for i in scene.train])
    forward, found = np.stack([scene.capture.views[i].c2w[:, 2] for i in scene.train]), []
    sharpness, stops = residuals(quality.sharpness, forward), residuals(quality.stops, forward)
    blurred = [scene.train[k] for k in outliers(sharpness, BLUR, SPREAD) if sharpness[k] < 0]
    if blurred:
        text = f"{len(blurred)} photographs are much less sharp than their neighbours: {_names(scene, blurred)}"
        found.append(Finding("doubtful", "sharpness", text, "take them out"))
    odd = outliers(stops, STOPS_UNMASKED if scene.masks is None else STOPS, SPREAD)
    for kind, members in (("darker", [k for k in odd if stops[k] < 0]), ("brighter", [k for k in odd if stops[k] > 0])):
        if members:
            most = max(abs(float(stops[k])) for k in members)
            names = _names(scene, [scene.train[k] for k in members])
            text = f"{len(members)} photographs are {kind} than their neighbours, by up to {most:.1f} stops: {names}"
            found.append(Finding("doubtful", "exposure", text, "take them out, or --method wild where exposure changes throughout"))
    same = alike(quality.thumbnails, SAME)
    if same:
        text = f"photographs that are the same: {_paired(scene, same)}"
        found.append(Finding("doubtful", "duplicates", text, "take one of each out"))
    repeated = [(k, m, like) for k, m, like in _repeated(scene, quality.thumbnails) if (k, m) not in same]
    noisy, others = [(k, m) for k, m, like in repeated if like], [(k, m) for k, m, like in repeated if not like]
    if noisy:
        found.append(Finding("note", "duplicates", f"photographs taken twice from one place: {_paired(scene, noisy)}"))
    if others:
        text = f"different photographs with one pose: {_paired(scene, others)}"
        found.append(Finding("doubtful", "poses", text, "check the poses, or take these photographs out"))
    return found


def _repeated(scene: Scene, thumbnails: np.ndarray) -> list[tuple[int, int, bool]]:
    """Pairs (k, m) of training views with one pose, by their places in `train`, and whether they show the same, but for noise."""
    poses = np.stack([scene.capture.views[i].c2w for i in scene.train])
    flat = np.concatenate([poses[:, :, :3].reshape(-1, 9), camera_positions(scene)], -1)
    _, first, group = np.unique(np.round(flat, 6), axis=0, return_index=True, return_inverse=True)
    pairs = [(int(first[g]), k) for k, g in enumerate(group.ravel()) if first[g] != k]
    return [(k, m, bool(np.abs(thumbnails[k] - thumbnails[m]).mean() <= LIKE)) for k, m in pairs]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def _name(scene: Scene, view: int) -> str:
    return scene.capture.views[view].name


def _paired(scene: Scene, pairs: Sequence[tuple[int, int]]) -> str:
    """Names of pairs of views, by their places in `train`."""
    more = f" and {len(pairs) - NAMED} more pairs" if len(pairs) > NAMED else ""
    named = (f"{_name(scene, scene.train[k])} and {_name(scene, scene.train[m])}" for k, m in pairs[:NAMED])
    return "; ".join(named) + more


def _names(scene: Scene, views: Sequence[int]) -> str:
    more = f" and {len(views) - NAMED} more" if len(views) > NAMED else ""
    return ", ".join(_name(scene, view) for view in views[:NAMED]) + more
