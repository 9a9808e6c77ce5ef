"""What was found in a folder, and whether it can work, before an hour is spent."""

from collections import Counter
from typing import Any

import numpy as np

from .scene import Scene

FEWEST_VIEWS = 8  # with fewer, surfaces between the views are guessed
SECTORS = 12  # of azimuth in the table of cameras
BANDS = (90, 60, 30, 10, -10, -30, -90)  # edges of its rows, degrees of elevation


def report(scene: Scene) -> dict[str, Any]:
    """Numbers, notes and warnings about a scene, ready for JSON. Lengths are in world units unless said otherwise."""
    views = scene.capture.views
    positions = scene.to_scene(np.stack([views[i].center for i in scene.train]))  # (n_train, 3)
    distances = np.linalg.norm(positions, axis=-1)
    warnings = _warnings(scene, positions)
    points = scene.capture.points
    footprint = pixel_footprint(scene)
    sizes = Counter(f"{view.camera.width}x{view.camera.height}" for view in views)
    return {
        "path": str(scene.capture.path),
        "format": scene.capture.format,
        "images": len(views),
        "sizes": dict(sizes.most_common()),
        "megabytes": round(sum(x.numel() for x in [*scene.images, *(scene.masks or [])]) / 2**20, 1),
        "cameras": len({view.camera for view in views}),
        "camera_models": dict(Counter(view.camera.model for view in views).most_common()),
        "train": len(scene.train),
        "test": len(scene.test),
        "masks": None if scene.masks is None else {"object_share": round(float(np.mean(_object_shares(scene))), 4)},
        "points": 0 if points is None else len(points),
        "box": {"center": scene.center.tolist(), "radius": scene.radius, "source": scene.box_source},
        "camera_distance": {  # from the box centre, in radii of the box
            "min": round(float(distances.min()), 3),
            "median": round(float(np.median(distances)), 3),
            "max": round(float(distances.max()), 3),
        },
        "camera_table": _camera_table(scene, positions),
        "pixel": footprint,
        "pixel_share": footprint / (2 * scene.radius),  # of the box edge
        "suggested_finest_resolution": suggested_resolution(scene),
        "notes": scene.notes,
        "warnings": warnings,
        "usable": len(scene.train) >= 3 and 2 * len(scene.blind) < len(scene.train),
    }


def pixel_footprint(scene: Scene) -> float:
    """Edge of a pixel at the box centre in the median training view, world units."""
    views = [scene.capture.views[i] for i in scene.train]
    return float(np.median([np.linalg.norm(view.center - scene.center) / max(view.camera.focal) for view in views]))


def suggested_resolution(scene: Scene) -> int:
    """Cells along the box edge so that one is as large as a pixel there, within 256 to 2048; finer ones can't be seen."""
    return int(np.clip(round(2 * scene.radius / pixel_footprint(scene)), 256, 2048))


def _object_shares(scene: Scene) -> list[float]:
    return [float((scene.masks[i] > 127).float().mean()) for i in scene.train] if scene.masks is not None else []


def _camera_table(scene: Scene, positions: np.ndarray) -> dict[str, Any]:
    """How many cameras stand where: rows are bands of elevation from the top, columns are sectors of azimuth."""
    up = -np.mean([scene.capture.views[i].c2w[:, 1] for i in scene.train], axis=0)
    if np.linalg.norm(up) < 0.3:  # cameras held at every angle: what is left is the direction in which they vary least
        up = np.linalg.svd(positions - positions.mean(0))[2][2]
    up = up / np.linalg.norm(up)
    side = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    side /= np.linalg.norm(side)
    towards = positions / np.maximum(np.linalg.norm(positions, axis=-1, keepdims=True), 1e-12)
    elevation = np.degrees(np.arcsin(np.clip(towards @ up, -1, 1)))
    azimuth = np.degrees(np.arctan2(towards @ np.cross(up, side), towards @ side)) % 360
    edges = (np.array(BANDS[::-1]), np.linspace(0, 360, SECTORS + 1))
    counts = np.histogram2d(elevation, azimuth, bins=edges)[0][::-1].astype(int)
    return {"elevation_edges": list(BANDS), "sectors": SECTORS, "up": up.round(4).tolist(), "counts": counts.tolist()}


def _warnings(scene: Scene, positions: np.ndarray) -> list[str]:
    warnings = []
    n = len(scene.train)
    if n < FEWEST_VIEWS:
        warnings.append(f"only {n} photographs to learn from: expect holes and bumps; {FEWEST_VIEWS} or more are better")
    if scene.blind:
        first = scene.capture.views[scene.blind[0]].name
        warnings.append(f"{len(scene.blind)} of {n} training views don't see the scene box; the first is {first}")
    inside = int(np.sum(np.abs(positions).max(-1) < 1))
    if inside:
        warnings.append(f"{inside} of {n} cameras stand inside the scene box: it may be too large (scene.radius)")
    empty = sum(share == 0 for share in _object_shares(scene))
    if empty:
        warnings.append(f"{empty} of {n} masks are empty")
    if scene.box_source.startswith("common view"):
        warnings.append("the scene box is a guess from the cameras alone: look at a preview, set scene.center, scene.radius if it is wrong")
    return warnings
