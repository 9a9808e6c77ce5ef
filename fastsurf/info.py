"""What was found in a folder, and whether it can work, before an hour is spent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .doctor import Finding, camera_positions, largest_gap, object_shares, widest_angle, worst_first
from .scene import Scene

CELLS_A_VIEW, FEWEST_CELLS = 16, 256  # along the box: found on a facade of 9 photographs and on the fox of 43, of 256 to 1900 cells


def report(scene: Scene, findings: Sequence[Finding]) -> dict[str, Any]:
    """Facts about a scene and what the doctor found, ready for JSON. Lengths are in world units unless said otherwise."""
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
            "largest_gap": round(largest_gap(positions)[0], 1),  # degrees from some direction to the nearest camera's
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
        **judged(findings),
    }


def judged(findings: Sequence[Finding]) -> dict[str, Any]:
    """What the doctor found, ready for JSON; all that is left to report of a scene that can't be loaded."""
    return {"findings": [asdict(finding) for finding in worst_first(findings)], "usable": all(f.severity != "broken" for f in findings)}


def pixel_footprint(scene: Scene) -> float:
    """Edge of a pixel at the box centre in the median training view, world units."""
    views = [scene.capture.views[i] for i in scene.train]
    return float(np.median([np.linalg.norm(view.center - scene.center) / max(view.camera.focal) for view in views]))


def suggested_resolution(scene: Scene) -> int:
    """Cells along the box edge of the field's finest level: two for each pixel there, within 512 to 2048; without masks no more than the
    photographs can tell apart from noise."""
    cells = int(np.clip(round(4 * scene.radius / pixel_footprint(scene)), 512, 2048))
    return cells if scene.masks is not None else min(cells, max(CELLS_A_VIEW * len(scene.train), FEWEST_CELLS))
