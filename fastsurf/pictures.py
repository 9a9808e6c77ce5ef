"""Pictures of a model: whole views, small previews, colours of vertices."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .appearance import MEAN
from .compositing import Rendering
from .files import png
from .hooks import Hook, Preview
from .losses import color_loss, outlier_scale, weights_for
from .memory import in_parts
from .model import Model
from .optim import BETAS, EPSILON
from .rays import Rays, make_rays
from .render import Samples, find
from .scene import Scene
from .training import background_color

T = TypeVar("T")

RAYS_AT_ONCE, VERTICES_AT_ONCE = 4096, 1 << 16
PREVIEW_SIDE, FINAL_SIDE = 64, 256  # pixels of the longer side, about
GREY = 0.5
UNSEEN = 2.0  # radians without a camera: a side that nobody looked at
STEEPEST, NEAREST = 1.2, 2.0  # of an orbit: radians, scene units
FIT_STEPS, FIT_RAYS, FIT_RATE = 60, 512, 0.1  # of a held-out photograph's embedding


@torch.no_grad()
def render_rays(
    model: Model, rays: Rays, events: Hook = lambda _: None, on_progress: Callable[[float], None] = lambda _: None
) -> Rendering:
    """Colours, opacity, depth and normals of any number of rays, without jitter; on the CPU.

    Args:
        events: hear of it where memory is short.
        on_progress: hears of the share that is done.
    """
    c, device = model.config.sampling, model.backend.device
    samples = Samples(c.front, c.interval)

    def render(part: slice) -> Rendering:
        shown = model.corrected(rays[part].to(device))
        return model.method.render(shown, model, model.width, samples, lambda r: background_color(model, r, None))[0]

    parts = list(_followed(in_parts(render, len(rays), RAYS_AT_ONCE, events), lambda r: len(r.rgb), len(rays), on_progress))
    return Rendering(*(torch.cat([getattr(p, name) for p in parts]).cpu() for name in Rendering.__dataclass_fields__))


@torch.no_grad()
def surface_depth(
    model: Model, rays: Rays, events: Hook = lambda _: None, on_progress: Callable[[float], None] = lambda _: None
) -> tuple[Tensor, Tensor]:
    """Whether rays meet the surface, (n,) bool, and where, as distance along them in scene units, (n,); on the CPU. See `render_rays`."""
    device = model.backend.device
    parts = in_parts(lambda part: find(model.corrected(rays[part].to(device)), model), len(rays), RAYS_AT_ONCE, events)
    found = list(_followed(parts, lambda f: len(f.t), len(rays), on_progress))
    return torch.cat([f.hit.cpu() for f in found]), torch.cat([f.t.cpu() for f in found])


def _followed(parts: Iterable[T], size: Callable[[T], int], n: int, on_progress: Callable[[float], None]) -> Iterator[T]:
    """The parts of n rows, and after each the share that is done."""
    done = 0
    for part in parts:
        done += size(part)
        on_progress(done / n)
        yield part


def fit_appearance(model: Model, rays: Rays, target: Tensor, view: int) -> None:
    """Learn how a photograph was taken from some of its pixels, all else as it is: for scoring the others (Martin-Brualla et al. 2021).

    Args:
        target: what the rays should show, (n, 3); of none nothing is learned, and the photograph has the mean appearance.
        view: the photograph, which was held out.
    """
    c, device, generator = model.config.sampling, model.backend.device, torch.Generator().manual_seed(model.config.train.seed)
    appearance, samples = model.appearance, Samples(c.front, c.interval)
    assert appearance is not None
    table, scale = appearance.table, outlier_scale(weights_for(model.config.loss, masks=False, points=False, photographs=1))
    first, second = torch.zeros_like(table), torch.zeros_like(table)
    table.data[view] = appearance.mean()
    appearance.learned[view] = True
    for step in range(1, FIT_STEPS + 1) if len(rays) else ():
        drawn = torch.randint(len(rays), (FIT_RAYS,), generator=generator)
        part, wanted = rays[drawn].to(device), target[drawn].to(device)
        shown = model.method.render(part, model, model.width, samples, lambda r: background_color(model, r, None))[0]
        (gradient,) = torch.autograd.grad(color_loss(shown.rgb, wanted, outlier=scale), [table])
        rate = FIT_RATE * (1.0 - (step - 1) / FIT_STEPS)
        model.backend.adam_(table.data, gradient, first, second, step, rate, BETAS, EPSILON)


def to_bytes(values: Tensor) -> np.ndarray:
    """[0, 1] to uint8."""
    return (values.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).numpy()


def normal_picture(rendering: Rendering) -> Tensor:
    """Normals (n, 3) as colours in [0, 1] in scene axes, grey where nothing is."""
    return rendering.normal * 0.5 + GREY


def preview(model: Model, scene: Scene, turn: int = 0) -> Preview:
    """Small pictures of one training view; `turn` walks through the views."""
    return _pictures(model, scene, scene.train[turn % len(scene.train)], PREVIEW_SIDE)


def last_preview(model: Model, scene: Scene, small: bool = False) -> Preview:
    """Larger pictures, of a held-out view where there is one."""
    return _pictures(model, scene, (scene.test or scene.train)[0], FINAL_SIDE // 2 if small else FINAL_SIDE)


def preview_png(shown: Preview, step: int) -> bytes:
    """Photograph, rendering and normals side by side, as a PNG; the text in it says which `view`, and after which `step`."""
    return png(np.concatenate([shown.photo, shown.rgb, shown.normal], axis=1), view=shown.view, step=str(step))


def _pictures(model: Model, scene: Scene, view: int, side: int) -> Preview:
    """Of about `side` pixels."""
    stride = max(1, max(scene.images[view].shape[:2]) // side)
    rays, (h, w) = scene.rays(view, stride)
    r = render_rays(model, rays)
    rgb, normal = (to_bytes(picture).reshape(h, w, 3) for picture in (r.rgb, normal_picture(r)))
    return Preview(scene.capture.views[view].name, rgb, normal, scene.images[view][::stride, ::stride].numpy())


@torch.no_grad()
def vertex_colors(
    model: Model, vertices: np.ndarray, colored: bool = True, view: int = MEAN, events: Hook = lambda _: None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Unit normals (v, 3) float32 from the field and colours (v, 3) uint8 as seen straight along the normal.

    Args:
        vertices: (v, 3) scene units.
        view: the photograph whose appearance they have.
        events: hear of it where memory is short.
    """
    points = torch.from_numpy(vertices.astype(np.float32))

    def look(part: slice) -> tuple[Tensor, Tensor]:
        x = points[part].to(model.backend.device)
        sample = model.sample(x)
        if not colored:
            return sample.normal.cpu(), x.new_zeros(0, 3)
        views = torch.full((len(x),), view, device=x.device)
        return sample.normal.cpu(), model.color(x, sample, -sample.normal, views).cpu()

    normals, colors = zip(*in_parts(look, len(points), VERTICES_AT_ONCE, events), strict=True)
    return torch.cat(normals).numpy(), to_bytes(torch.cat(colors)) if colored else None


@dataclass(frozen=True)
class Orbit:
    """A camera's way round the middle of the scene box, which it looks at; scene units and radians.

    Attributes:
        up: (3,) unit, the axis.
        azimuths: where it stands, in turn; elevation: over the plane through the middle.
        radius: its distance.
        field_of_view: across its square pictures.
    """

    up: np.ndarray
    azimuths: np.ndarray
    elevation: float
    radius: float
    field_of_view: float


def orbit_of(centers: np.ndarray, up: np.ndarray, steps: int, field_of_view: float) -> Orbit:
    """Round the box at the height and distance of cameras (n, 3); where they left out a side of it, there and back before the others."""
    side, front = _across(up)
    distances = np.maximum(np.linalg.norm(centers, axis=1), 1e-9)
    azimuths = np.sort(np.arctan2(centers @ front, centers @ side))
    gaps = np.diff(azimuths, append=azimuths[0] + 2.0 * np.pi)
    widest = int(gaps.argmax())
    k = np.arange(steps) / steps
    way = 2.0 * np.pi * k
    if gaps[widest] > UNSEEN:
        span = 2.0 * np.pi - gaps[widest]
        way = azimuths[widest] - 0.5 * span * (1.0 - np.sin(2.0 * np.pi * k))
    elevation = float(np.arcsin(np.clip(centers @ up / distances, -1.0, 1.0)).mean().clip(-STEEPEST, STEEPEST))
    return Orbit(up, way, elevation, max(float(np.median(distances)), NEAREST), field_of_view)


def _across(up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors (3,) that `up` is at right angles to, as they are to each other."""
    side = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    side = side / np.linalg.norm(side)
    return side, np.cross(side, up)


def orbit_rays(orbit: Orbit, size: int) -> Iterator[Rays]:
    """Rays of each picture of an orbit, `size` pixels a side."""
    up, side, front = (torch.from_numpy(axis).float() for axis in (orbit.up, *_across(orbit.up)))
    ys, xs = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    focal = 0.5 * size / np.tan(0.5 * orbit.field_of_view)
    plane = torch.stack([(xs - size / 2) / focal, (ys - size / 2) / focal, torch.ones_like(xs)], -1).view(-1, 3)
    for angle in orbit.azimuths:
        out = np.cos(orbit.elevation) * (np.cos(angle) * side + np.sin(angle) * front) + np.sin(orbit.elevation) * up
        forward = -out / out.norm()
        right = torch.linalg.cross(forward, up)
        right = right / right.norm()
        down = torch.linalg.cross(forward, right)
        directions = plane @ torch.stack([right, down, forward])
        directions = directions / directions.norm(dim=1, keepdim=True)
        of_none = torch.full((len(directions),), -1)
        yield make_rays((orbit.radius * out).expand_as(directions).contiguous(), directions, of_none)
