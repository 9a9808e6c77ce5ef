"""What was found in a folder, and whether it can work, before an hour is spent."""

from collections import Counter
from typing import Any

import numpy as np

from .scene import Scene

FEWEST_VIEWS = 8  # with fewer, surfaces between the views are guessed
CELLS_A_VIEW, FEWEST_CELLS = 16, 256  # along the box: found on a facade of 9 photographs and on the fox of 43, of 256 to 1900 cells
ONE_SIDED = 120.0  # degrees between the outermost cameras, seen from the scene; below, the back stays unseen


def report(scene: Scene) -> dict[str, Any]:
    """Facts, notes and warnings about a scene, ready for JSON. Lengths are in world units unless said otherwise."""
    views = scene.capture.views
    positions = camera_positions(scene)
    distances = np.linalg.norm(positions, axis=-1)
    points = scene.capture.points
    pixel = pixel_footprint(scene)
    return {
        "path": str(scene.capture.path),
        "format": scene.capture.format,
        "images": len(views),
        "train": len(scene.train),
        "test": len(scene.test),
        "sizes": dict(Counter(f"{view.camera.width}x{view.camera.height}" for view in views).most_common()),
        "megabytes": round(sum(x.numel() for x in [*scene.images, *(scene.masks or [])]) / 2**20, 1),
        "cameras": len({view.camera for view in views}),
        "camera_models": dict(Counter(view.camera.model for view in views).most_common()),
        "masks": None if scene.masks is None else {"object_share": round(float(np.mean(object_shares(scene))), 4)},
        "points": 0 if points is None else len(points),
        "box": {"center": scene.center.tolist(), "radius": scene.radius, "source": scene.box_source},
        "ring": {  # of the training cameras round the box
            "nearest": round(float(distances.min()), 3),  # distances from the box centre, in radii of the box
            "median": round(float(np.median(distances)), 3),
            "furthest": round(float(distances.max()), 3),
            "degrees": round(widest_angle(positions), 1),  # between the outermost two, seen from the box centre
        },
        "views": [
            {
                "name": view.name,
                "split": "train" if i in scene.train else "test",
                "center": view.center.tolist(),
                "forward": view.c2w[:, 2].tolist(),
                "sees_box": i not in scene.blind,
            }
            for i, view in enumerate(views)
        ],
        "pixel": pixel,
        "pixel_share": pixel / (2 * scene.radius),  # of the box edge
        "finest_resolution": suggested_resolution(scene),
        "notes": scene.notes,
        "warnings": warnings(scene),
        "usable": len(scene.train) >= 3 and 2 * len(scene.blind) < len(scene.train),
    }


def pixel_footprint(scene: Scene) -> float:
    """Edge of a pixel at the box centre in the median training view, world units."""
    views = [scene.capture.views[i] for i in scene.train]
    return float(np.median([np.linalg.norm(view.center - scene.center) / max(view.camera.focal) for view in views]))


def suggested_resolution(scene: Scene) -> int:
    """Cells along the box edge of the field's finest level: two for each pixel there, within 512 to 2048; without masks no more than the
    photographs can tell apart from noise."""
    cells = int(np.clip(round(4 * scene.radius / pixel_footprint(scene)), 512, 2048))
    return cells if scene.masks is not None else min(cells, max(CELLS_A_VIEW * len(scene.train), FEWEST_CELLS))


def widest_angle(positions: np.ndarray) -> float:
    """Largest angle between two of the positions (n, 3), seen from the origin, degrees: 180 all round, less from one side."""
    towards = positions / np.maximum(np.linalg.norm(positions, axis=-1, keepdims=True), 1e-12)
    return float(np.degrees(np.arccos(np.clip((towards @ towards.T).min(), -1, 1))))


def object_shares(scene: Scene) -> list[float]:
    """Share of each training view's pixels that its mask calls object; empty without masks."""
    return [] if scene.masks is None else [float((scene.masks[i] > 127).float().mean()) for i in scene.train]


def camera_positions(scene: Scene) -> np.ndarray:
    """Where the training cameras stand in the scene, (n_train, 3)."""
    return scene.to_scene(np.stack([scene.capture.views[i].center for i in scene.train]))


def warnings(scene: Scene) -> list[str]:
    """What may spoil the result, one line each."""
    n, positions = len(scene.train), camera_positions(scene)
    found = []
    if n < FEWEST_VIEWS:
        found.append(f"only {n} photographs to learn from: expect holes and bumps; {FEWEST_VIEWS} or more are better")
    if scene.blind:
        first = scene.capture.views[scene.blind[0]].name
        found.append(f"{len(scene.blind)} of {n} training views don't see the scene box; the first is {first}")
    inside = int(np.sum(np.abs(positions).max(-1) < 1))
    if inside:
        found.append(f"{inside} of {n} cameras stand inside the scene box: lower scene.radius")
    empty = sum(share == 0 for share in object_shares(scene))
    if empty:
        found.append(f"{empty} of {n} masks are empty")
    angle = widest_angle(positions)
    if angle < ONE_SIDED:
        found.append(f"the cameras span only {angle:.0f} degrees round the scene: surfaces that none of them sees are made up")
    if scene.box_source.startswith("common view"):
        found.append("the scene box is a guess from the cameras alone: look at a preview, set scene.center, scene.radius if it is wrong")
    return found
