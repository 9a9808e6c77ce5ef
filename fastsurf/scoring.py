"""Scores and pictures of a finished run or of a mesh from elsewhere: what tools/evaluate.py and `fastsurf compare` say of each."""

import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .cameras import View, rescale
from .checkpoint import read_header
from .config import Config
from .figures import color_bar, draw_error
from .hooks import Hook
from .info import pixel_footprint
from .mesh import Mesh, components, is_watertight
from .meshio import read_mesh
from .methods import samples_per_ray
from .metrics import Floats, Threshold, Truth, distance_to, measure, picture_scores, psnr, read_truth, scores_of, sweep
from .reconstruction import CHECKPOINT, LOG, MESH, background_kind
from .runs import expected, picture_names, render_run
from .scene import Scene
from .shade import Picture, draw, rasterise
from .training import rays_a_step

SIDE = 360  # pixels of the longer side of a picture in a sheet
HEAT_SHARE = 0.005  # of the truth's diagonal: where the colours of errors end
SAMPLES = 200_000  # points on each surface

Tree = dict[str, Any]  # as JSON has it


@dataclass(frozen=True)
class Scored:
    """What is known of a run."""

    mesh: Mesh
    scores: Tree
    views: dict[int, Picture]  # held-out views as the model shows them
    per_view: dict[str, Tree]  # their scores, by name


def score_run(
    folder: Path, config: Config, scene: Scene, truth: Truth | None, samples: int = SAMPLES, thresholds: Sequence[Threshold] = (),
    hooks: Sequence[Hook] = (),
) -> Scored:  # fmt: skip
    """Score the run in DIR/run, whose held-out views are rendered into DIR/views where they aren't there yet."""
    mesh = read_mesh(folder / "run" / MESH)
    device = read_header(folder / "run" / CHECKPOINT).device
    scores = from_log(folder / "run" / LOG, config, device) | score_surface(mesh, scene, truth, samples, thresholds)
    views = rendered(folder, scene, config, hooks)
    per_view = {scene.capture.views[i].name: on_view(views[i], scene, i, config) for i in views}
    return Scored(mesh, scores | means(per_view.values()), views, per_view)


def score_surface(
    mesh: Mesh, scene: Scene, truth: Truth | None, samples: int = SAMPLES, thresholds: Sequence[Threshold] = ()
) -> Tree:
    """What the mesh alone tells; against the truth, where there is one, those parts of it count that a training view sees.

    Lengths are in world units, some in pixel footprints too; `sweep` is there with thresholds.
    """
    footprint = pixel_footprint(scene)
    parts = int(components(mesh.vertices, mesh.faces).max()) + 1
    scores: Tree = {"components": parts, "watertight": is_watertight(mesh.faces), "faces": len(mesh.faces), "footprint": footprint}
    if truth is not None:
        measured = measure(mesh, truth, [scene.capture.views[i] for i in scene.train], samples)
        scores |= scores_of(measured)
        scores |= {"chamfer_px": scores["chamfer"] / footprint, "offset_px": scores["offset"] / footprint}
        scores |= {"sweep": sweep(measured, thresholds)} if thresholds else {}
    return scores | silhouettes(mesh, scene)


def truth_of(scene: Path, given: Path | None) -> Truth | None:
    """The truth that is given, else the one beside the photographs, if there is any."""
    home = scene if scene.is_dir() else scene.parent
    found = given or (home if (home / "gt").is_dir() else None)
    return read_truth(found) if found is not None else None


def from_log(log: Path, config: Config, device: str) -> Tree:
    """Seconds by phase, steps, and samples: rays x samples on a ray x steps; `device`: cpu or cuda."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    facts: Tree = {f"{e['name']}_seconds": e["seconds"] for e in events if e["event"] == "phase_done"}
    facts["steps"] = max((e["step"] for e in events if e["event"] == "step"), default=0)
    facts["samples_millions"] = rays_a_step(config.train, device) * samples_per_ray(config) * facts["steps"] / 1e6
    return facts


def rendered(folder: Path, scene: Scene, config: Config, hooks: Sequence[Hook] = ()) -> dict[int, Picture]:
    """The held-out views as the model shows them, from DIR/views, where they are made first if they are not there."""
    if not scene.test:
        return {}
    names = dict(zip(scene.test, picture_names([scene.capture.views[i].name for i in scene.test]), strict=True))
    files = {i: folder / "views" / f"{name}.png" for i, name in names.items()}
    if not all(file.is_file() for file in files.values()):
        render_run(folder / "run", "test", folder / "views", config.backend, config.threads, hooks)
        shutil.rmtree(folder / "views" / "depth")
    return {i: load_picture(file) for i, file in files.items()}


def on_view(picture: Picture, scene: Scene, i: int, config: Config) -> Tree:
    """PSNR and SSIM of a held-out view, of the pixels that count (metrics.py)."""
    photo, counts = expected(scene, i, background_kind(scene, config))
    shown = np.where(counts[..., None], picture / 255, photo)
    scores: Tree = dict(picture_scores(shown, photo, counts))
    if scene.masks is not None and (inside := counts & (scene.masks[i].numpy() > 127)).any():
        scores["psnr_object"] = psnr(shown, photo, inside)
    return scores


def silhouettes(mesh: Mesh, scene: Scene) -> Tree:
    """Mean IoU of the mesh's silhouettes with the masks, in the held-out views or, without any, in the training views."""
    if scene.masks is None:
        return {}
    shares = []
    for i in scene.test or scene.train:
        view, mask = scene.capture.views[i], scene.masks[i].numpy() > 127
        shown = rasterise(mesh, view.camera, view.c2w).face >= 0
        either = int((shown | mask).sum())
        shares.append(int((shown & mask).sum()) / either if either else 1.0)
    return {"mask_iou": statistics.fmean(shares)}


def means(rows: Iterable[Mapping[str, float]]) -> Tree:
    """Of every number that the rows hold."""
    rows = list(rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: statistics.fmean(row[key] for row in rows if key in row) for key in keys}


# pictures of one view


@dataclass(frozen=True)
class Scale:
    """How errors are coloured."""

    distance: Callable[[Floats], Floats]  # of points (n, 3) from the truth
    limit: float  # where the colours end, world units
    footprint: float  # of a pixel, world units


def error_bar(limit: float, footprint: float) -> Callable[[int], Picture]:
    """A strip of given width that explains the colours of a `Scale`."""
    share, pixels = f"{100 * HEAT_SHARE:g} % of the truth's diagonal", f"{limit / footprint:.2g} pixel footprints"
    return partial(color_bar, limit=limit, note=f"({share}, {pixels})   grey: no truth")


def error_scale(truth: Truth, scene: Scene) -> Scale:
    """The same for every mesh of a scene."""
    points = truth.points if truth.points is not None else truth.mesh.vertices if truth.mesh is not None else np.zeros((1, 3))
    return Scale(distance_to(truth), HEAT_SHARE * float(np.linalg.norm(np.ptp(points, axis=0))), pixel_footprint(scene))


def draw_view(mesh: Mesh, scene: Scene, i: int, shown: Picture | None, scale: Scale | None) -> dict[str, Picture]:
    """View i by column: photograph, rendering (where `shown`, at any size), normals, shaded mesh, error (where there is a truth)."""
    view = small(scene.capture.views[i])
    camera, c2w, size = view.camera, view.c2w, (view.camera.width, view.camera.height)
    photo = scene.images[i].numpy()
    if scene.masks is not None:
        photo = np.where(scene.masks[i].numpy()[..., None] > 127, photo, 255).astype(np.uint8)
    pictures = {"photograph": resized(photo, size)}
    if shown is not None:
        pictures["rendering"] = resized(shown, size)
    pictures |= {"normals": draw(mesh, camera, c2w, "normal"), "shaded": draw(mesh, camera, c2w)}
    if scale is not None:
        pictures["error"] = draw_error(mesh, scale.distance, scale.limit, camera, c2w)
    return pictures


def small(view: View) -> View:
    """For a picture in a sheet."""
    w, h = view.camera.width, view.camera.height
    scale = min(1.0, SIDE / max(w, h))
    return replace(view, camera=rescale(view.camera, max(1, round(w * scale)), max(1, round(h * scale))))


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """To (width, height), by averaging."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))


def load_picture(path: Path) -> Picture:
    """(h, w, 3); a little grey where there is none."""
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")) if path.is_file() else np.full((8, 8, 3), 205, np.uint8)
