"""A contact sheet of a scene: its photographs with masks outlined and the scene box drawn in, and where the cameras stand."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from .cameras import up_of, world_to_pixels
from .rays import box_edges
from .scene import Scene
from .shade import Floats, Picture

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

COLUMNS, MOST = 8, 48  # photographs in a row, and in all
THUMBNAIL, CAPTION, GAP = 180, 18, 6  # pixels
MAP = 760  # pixels along the edge of a view of the cameras; two of them are as wide as a row
RAYS = 160
BOX, OUTLINE, TRAIN, TEST, AXIS = (255, 120, 0), (255, 0, 255), (20, 90, 200), (130, 130, 130), (160, 195, 240)
_ALONG = 17  # points along an edge, for lenses that bend it


def draw_sheet(scene: Scene) -> Picture:
    """The sheet, (h, w, 3)."""
    from PIL import Image, ImageDraw

    width = COLUMNS * (THUMBNAIL + GAP) + GAP
    shown = sorted(set(np.linspace(0, len(scene.images) - 1, min(MOST, len(scene.images))).round().astype(int).tolist()))
    thumbnails = [thumbnail(scene, i) for i in shown]
    rows = [thumbnails[k : k + COLUMNS] for k in range(0, len(thumbnails), COLUMNS)]
    heights = [max(t.shape[0] for t in row) + CAPTION + GAP for row in rows]
    sheet = Image.new("RGB", (width, GAP + sum(heights) + CAPTION + MAP), "white")
    pen, top = ImageDraw.Draw(sheet), GAP
    for row, height, first in zip(rows, heights, range(0, len(shown), COLUMNS), strict=True):
        for k, picture in enumerate(row):
            left = GAP + k * (THUMBNAIL + GAP)
            sheet.paste(Image.fromarray(picture), (left, top))
            view = scene.capture.views[shown[first + k]]
            pen.text((left, top + picture.shape[0] + 2), _short(view.name), fill=TEST if view.split == "test" else "black")
        top += height
    for k, (name, axes) in enumerate(_directions(scene)):
        left = k * (width // 2)
        pen.text((left + GAP, top + 2), name, fill="black")
        sheet.paste(Image.fromarray(_map(scene, axes)), (left + GAP, top + CAPTION))
    return np.array(sheet)


def thumbnail(scene: Scene, view: int) -> Picture:
    """A photograph, at most THUMBNAIL a side, its mask outlined and the scene box drawn in."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(scene.images[view].numpy())
    full = picture.size
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    pixels = np.array(picture)
    if scene.masks is not None:
        mask = np.asarray(Image.fromarray(scene.masks[view].numpy()).resize(picture.size, Image.Resampling.BOX)) > 127
        inner = np.pad(mask, 1, mode="edge")
        inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        pixels[mask & ~inner] = OUTLINE
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    shrink = np.array(picture.size) / full
    for edge in box_edges(_ALONG):
        _polyline(pen, world_to_pixels(scene.capture.views[view], scene.to_world(edge)) * shrink, BOX)
    return np.array(drawn)


def _directions(scene: Scene) -> list[tuple[str, Floats]]:
    """Names and axes (2, 3), to the right and upwards, of the two maps: from above, by the cameras' mean up, and from the side."""
    poses = np.stack([scene.capture.views[i].c2w for i in scene.train])
    up = up_of(poses)
    offsets = scene.to_scene(poses[:, :, 3])
    flat = offsets - np.outer(offsets @ up, up)
    right = np.linalg.svd(flat - flat.mean(0))[2][0]
    right = right - (right @ up) * up
    right = right / np.linalg.norm(right)
    return [("from above", np.stack([right, np.cross(up, right)])), ("from the side", np.stack([right, up]))]


def _map(scene: Scene, axes: Floats) -> Picture:
    """Cameras with their optical axes, the box, and rays of random pixels through it in their colours, along axes (2, 3)."""
    from PIL import Image, ImageDraw

    views = scene.capture.views
    centers, edges = scene.to_scene(np.stack([view.center for view in views])), box_edges()
    reach = 1.08 * max(float(np.quantile(np.abs(centers @ axes.T), 0.98)), float(np.abs(edges @ axes.T).max()))
    image = Image.new("RGB", (MAP - 2 * GAP, MAP - 2 * GAP), "white")
    pen = ImageDraw.Draw(image)

    def place(points: Floats) -> Floats:
        return np.asarray((points @ axes.T / reach * [1, -1] + 1) / 2 * (MAP - 2 * GAP))

    batch = scene.sample(RAYS, torch.Generator().manual_seed(0), 0.75)
    near, far = (np.asarray(batch.rays.origins + t[:, None] * batch.rays.directions, np.float64)
                 for t in (batch.rays.t_near, batch.rays.t_far))  # fmt: skip
    for a, b, color in zip(place(near), place(far), (255 * batch.rgb).int().tolist(), strict=True):
        _polyline(pen, np.stack([a, b]), (color[0], color[1], color[2]))
    forward = np.stack([view.c2w[:, 2] for view in views])
    towards = np.maximum(-np.einsum("nj,nj->n", centers, forward), 0.2)[:, None]  # as far as where they pass the middle
    for a, b in zip(place(centers), place(centers + towards * forward), strict=True):
        _polyline(pen, np.stack([a, b]), AXIS)
    for edge in edges:
        _polyline(pen, place(edge), BOX)
    for i, (x, y) in enumerate(place(centers)):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=TRAIN if i in scene.train else TEST)
    return np.array(image)


def _polyline(pen: "ImageDraw", points: Floats, color: tuple[int, int, int]) -> None:
    """Lines between points (n, 2), but for those that are not there (NaN) or far out of the picture."""
    there: npt.NDArray[np.bool_] = np.all(np.abs(np.nan_to_num(points, nan=np.inf)) < 1e4, axis=-1)
    for k in np.flatnonzero(there[:-1] & there[1:]):
        pen.line([tuple(points[k]), tuple(points[k + 1])], fill=color)


def _short(name: str, letters: int = 28) -> str:
    return name if len(name) <= letters else "…" + name[1 - letters :]
