"""The demo: photographs of a known solid are made, reconstructed, scored against the truth, and drawn beside it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cameras import Camera
from .config import Config
from .demo_scene import make_scene
from .files import png, write_whole
from .formats import load
from .hooks import Control, Hook, MeshProgress, Phases, Saved, announce
from .mesh import Mesh
from .meshio import read_mesh
from .metrics import read_truth, score_mesh
from .reconstruction import PREVIEW, reconstruct
from .runs import write_json
from .shade import draw, look_at, sheet

VIEWS = ((25.0, 20.0), (205.0, 25.0))  # azimuth and elevation of the preview's cameras, degrees
SIZE, DISTANCE = 480, 4.2  # pixels; the object is about 2 across


def demo(
    out: str | Path, config: Config, hooks: Sequence[Hook] = (), should_stop: Callable[[], bool] = lambda: False,
    control: Control | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make OUT/scene, reconstruct it into OUT/run and OUT/mesh.ply, and leave OUT/score.json and OUT/preview.png.

    Args:
        should_stop: ends the training early, and `control` pauses it, as in `reconstruct`.

    Returns:
        what is in score.json: `f_score` (at 1 % of the diagonal), `chamfer_pct` (of the diagonal), `seconds` of the whole, whether its
        training was `stopped`, and more.
    """
    started, out, events = time.monotonic(), Path(out), announce(hooks)
    phases = Phases(events)
    with phases("scene") as phase:
        make_scene(out / "scene", on_progress=lambda done: events(MeshProgress(done, "photographs")))
        phase.detail = "photographs of a known solid"
    result = reconstruct(
        out / "scene", config, run=out / "run", out=out / "mesh.ply", force=True, hooks=hooks, should_stop=should_stop, control=control
    )
    with phases("score") as phase:
        folder = out / "scene"
        truth = read_mesh(folder / "gt" / "mesh.ply")
        views = [view for view in load(folder).views if view.split == "train"]
        scores: dict[str, Any] = dict(score_mesh(result.mesh, read_truth(folder), views))
        scores |= {"seconds": round(time.monotonic() - started, 1), "phases": result.seconds, "stopped": result.stopped}
        write_whole(out / PREVIEW, preview_of(truth, result.mesh))
        write_json(out / "score.json", scores)
        phase.detail = f"F-score {scores['f_score']:.3f}"
    for what, name in (("preview", PREVIEW), ("scores", "score.json")):
        events(Saved(what, out / name))
    return scores


def preview_of(truth: Mesh, result: Mesh) -> bytes:
    """Truth on the left, result on the right; colours above, shape below; as a PNG."""
    camera = Camera("PINHOLE", SIZE, SIZE, (1.7 * SIZE, 1.7 * SIZE, SIZE / 2, SIZE / 2))
    middle = (truth.vertices.min(0) + truth.vertices.max(0)) / 2
    rows = []
    for style, (azimuth, elevation) in zip(("color", "clay"), VIEWS, strict=True):
        a, e = np.radians([azimuth, elevation])
        eye = middle + DISTANCE * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
        rows.append([draw(mesh, camera, look_at(eye, middle), style) for mesh in (truth, result)])  # type: ignore[arg-type]
    return png(sheet(rows))
