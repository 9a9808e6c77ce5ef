"""The photographs in memory, and the scene box that the method works in.

The world is the input's own frame; the scene is the box [-1, 1]^3: x_world = center + radius * x_scene, without rotation.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import conventions, formats
from .backends import FusedBackend, Photographs
from .bounds import COMMON_VIEW, Box, find_box, points_box
from .cameras import Capture, View, rescale
from .config import SceneConfig
from .epipolar import find_matches
from .errors import SceneError
from .formats.checks import find_ignored
from .images import ImageStore, read_images
from .landmarks import Landmarks, landmarks_of
from .pixels import PixelDirections, Pool, pixel_directions, pool_of, runs_of
from .rays import Batch, Rays, intersect_box
from .surroundings import find_masks

BLOCK = 8  # pixels; where a ray meets the box is looked up once per block, and pixel by pixel along the outline


@dataclass(frozen=True)
class Viewpoints:
    """Where the pixels of all views look."""

    plane: PixelDirections
    rotations: Tensor  # (n_views, 3, 3), camera to scene
    origins: Tensor  # (n_views, 3), scene units

    def to(self, device: torch.device) -> "Viewpoints":
        """The same on another device."""
        return Viewpoints(self.plane.to(device), self.rotations.to(device), self.origins.to(device))

    def rays(self, view: Tensor, u: Tensor, v: Tensor) -> Rays:
        """Rays through the centres of pixels (u, v) of views, each (n,) int64."""
        plane = self.plane(view, u, v)  # (n, 2)
        blind = plane.isnan().any(-1)
        looking = torch.nn.functional.pad(torch.where(blind[:, None], 0.0, plane), (0, 1), value=1.0)
        directions = torch.einsum("nij,nj->ni", self.rotations[view], looking)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        origins = self.origins[view]
        t_near, t_far = intersect_box(origins, directions)
        return Rays(origins, directions, t_near, torch.where(blind, t_near, t_far), view)


@dataclass(frozen=True)
class Source:
    """Photographs to draw pixels from."""

    viewpoints: Viewpoints
    store: ImageStore
    object: Pool  # pixels inside masks
    rest: Pool

    def to(self, device: torch.device) -> "Source":
        """The same on another device."""
        return Source(*(getattr(self, f.name).to(device) for f in fields(self)))

    def sample(self, n: int, generator: torch.Generator, foreground: float) -> Batch:
        """See `Scene.sample`; the batch is where the photographs are."""
        n_object = self._share(n, foreground)
        pixel = torch.cat([self.object.draw(n_object, generator), self.rest.draw(n - n_object, generator)])
        store = self.store
        view = torch.searchsorted(store.offsets, pixel, right=True) - 1
        width = store.widths[view]
        local = pixel - store.offsets[view]
        rays = self.viewpoints.rays(view, local % width, local // width)
        mask = None if store.coverage is None else store.coverage[pixel].float() / 255
        return Batch(rays, store.colors[pixel].float() / 255, mask, pixel)

    def sample_natively(self, n: int, generator: torch.Generator, foreground: float, backend: FusedBackend) -> Batch:
        """`sample` in one call of the backend, of the same pixels."""
        n_object = self._share(n, foreground)
        drawn = torch.cat([self.object.draw_places(n_object, generator), self.rest.draw_places(n - n_object, generator)])
        return backend.see(self._photographs, drawn, n_object)

    @cached_property
    def _photographs(self) -> Photographs:
        plane, store, viewpoints = self.viewpoints.plane, self.store, self.viewpoints
        first, second = ((pool.ends, pool.shifts, len(pool)) for pool in (self.object, self.rest))
        return Photographs(
            plane.nodes, plane.first.contiguous(), plane.counts.contiguous(), plane.per_pixel, viewpoints.rotations.contiguous(),
            viewpoints.origins, store.offsets, store.widths, store.colors, store.coverage, (first, second),
        )  # fmt: skip

    def _share(self, n: int, foreground: float) -> int:
        """How many of n rays go through masks."""
        n_object = round(n * foreground) if len(self.rest) else n
        return n_object if len(self.object) else 0


class Scene:
    """Photographs, cameras and the scene box.

    Attributes:
        capture: what the files say, with cameras rescaled to the photographs in memory.
        center, radius: the scene box in the world; `box_source` says where it comes from.
        images: straight colours of each view, (h, w, 3) uint8.
        masks: (h, w) uint8 of each view, 255 is object; None without masks.
        ignored: (h, w) bool of each view, pixels that are neither learned from nor scored; None where all count.
        train, test: indices of the views to learn from, and of those held out.
        blind: those of the training views that don't see the scene box.
        landmarks: sparse points that training views see; None where there are none, or masks say more.
        notes: one-line remarks for the user.
    """

    def __init__(self, capture: Capture, store: ImageStore, box: Box, train: Sequence[int], test: Sequence[int], notes: Sequence[str]):
        self.capture = capture
        self.center = np.asarray(box.center, np.float64)
        self.radius = float(box.radius)
        self.box_source = box.source
        self.images = store.images
        self.masks = store.masks
        self.ignored = store.ignored
        self.train = list(train)
        self.test = list(test)
        self.notes = list(notes)
        self._store = store
        poses = np.stack([view.c2w for view in capture.views])
        rotations, origins = torch.from_numpy(poses[:, :, :3]).float(), torch.from_numpy(self.to_scene(poses[:, :, 3])).float()
        self._viewpoints = Viewpoints(pixel_directions([view.camera for view in capture.views]), rotations, origins)
        self.blind: list[int] = []
        self._source = Source(self._viewpoints, store, *self._pools())
        self.landmarks: Landmarks | None = None
        if capture.points is not None and capture.sightings is not None:
            self._add_landmarks(capture.points, capture.sightings)
        self._sources: dict[torch.device, Source] = {}  # by the device that asks; where there is no room, the one in memory

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of each view."""
        return [self._store.view_shape(view) for view in range(len(self.images))]

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Scene points (n, 3) in the world, float64."""
        return self.center + self.radius * np.asarray(points, np.float64)

    def to_scene(self, points: np.ndarray) -> np.ndarray:
        """World points (n, 3) in the scene, float64."""
        return (np.asarray(points, np.float64) - self.center) / self.radius

    def with_points(self, points: np.ndarray, sightings: np.ndarray) -> "Scene":
        """The scene with sparse points made of its photographs, as `landmarks_of` takes them; where its box was but a guess from the
        cameras, with the box that they give. The scene itself where too few of them lie in it."""
        capture = replace(self.capture, points=points, sightings=sightings)
        box = points_box([capture.views[i] for i in self.train], points) if self.box_source == COMMON_VIEW else None
        if box is not None:
            located = Scene(capture, self._store, box, self.train, self.test, self.notes)
        else:
            located = copy.copy(self)  # which pixels meet the box stays as it is
            located.capture = capture
            located._add_landmarks(points, sightings)
        return self if located.landmarks is None else located

    def _add_landmarks(self, points: np.ndarray, sightings: np.ndarray) -> None:
        if self.masks is None:
            seeing = [i for i in self.train if i not in self.blind]
            self.landmarks = landmarks_of(self.capture, seeing, points, sightings, self.to_scene)

    def sample(self, n: int, generator: torch.Generator, foreground: float, backend: FusedBackend | None = None) -> Batch:
        """Random pixels of the training views, with replacement, among those whose ray meets the scene box.

        Args:
            generator: the batch is on its device; the first draw copies the photographs there, if they fit into half of its memory.
            foreground: share of the rays that go through masks; the others go past them. Without masks all are drawn alike.
            backend: works it out in one call.
        """
        if backend is not None:
            return self._source.sample_natively(n, generator, foreground, backend)
        device = generator.device
        if device not in self._sources:
            fits = device.type != "cpu" and self._store.bytes < 0.5 * torch.cuda.mem_get_info(device)[0]
            self._sources[device] = self._source.to(device) if fits else self._source
        return self._sources[device].sample(n, generator, foreground).to(device)

    def rays(self, view: int, stride: int = 1) -> tuple[Rays, tuple[int, int]]:
        """Rays through every `stride`-th pixel centre of a view, row by row, and the height and width of that picture.

        They belong to the pixels `images[view][::stride, ::stride]`.
        """
        h, w = self._store.view_shape(view)
        v, u = torch.meshgrid(torch.arange(0, h, stride), torch.arange(0, w, stride), indexing="ij")
        return self._viewpoints.rays(torch.full((u.numel(),), view), u.reshape(-1), v.reshape(-1)), (u.shape[0], u.shape[1])

    def _meets_box(self, view: int) -> np.ndarray:
        """Whether each pixel's ray meets the scene box, (h * w,) bool."""
        h, w = self._store.view_shape(view)
        v, u = (np.minimum(np.arange(0, n + BLOCK, BLOCK), n - 1) for n in (h, w))
        corners = self._meet(view, *np.meshgrid(u, v))  # (rows + 1, columns + 1)
        touching = corners[:-1, :-1].astype(int) + corners[:-1, 1:] + corners[1:, :-1] + corners[1:, 1:]
        meets = np.repeat(np.repeat(touching == 4, BLOCK, 0), BLOCK, 1)[:h, :w]
        rows, columns = (BLOCK * block[:, None, None] for block in np.nonzero(touching % 4))
        rows, columns = np.broadcast_arrays(rows + np.arange(BLOCK)[:, None], columns + np.arange(BLOCK))  # (n_blocks, BLOCK, BLOCK)
        there = (rows < h) & (columns < w)
        rows, columns = rows[there], columns[there]
        meets[rows, columns] = self._meet(view, columns, rows)
        return meets.reshape(-1)

    def _meet(self, view: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        flat = [torch.from_numpy(np.ascontiguousarray(x).reshape(-1)).long() for x in (u, v)]
        rays = self._viewpoints.rays(torch.full((u.size,), view), *flat)
        return (rays.t_far > rays.t_near).numpy().reshape(u.shape)

    def _pools(self) -> tuple[Pool, Pool]:
        """Pixels of the training views whose ray meets the box: those inside masks, and the rest."""
        inside, rest = [], []
        for view in self.train:
            offset = int(self._store.offsets[view])
            meets = self._meets_box(view)
            if not meets.any():
                self.blind.append(view)
            if self.ignored is not None:
                meets &= ~self.ignored[view].numpy().reshape(-1)
            is_object = np.zeros_like(meets) if self.masks is None else self.masks[view].numpy().reshape(-1) > 127
            inside.append(runs_of(meets & is_object, offset))
            rest.append(runs_of(meets & ~is_object, offset))
        box = f"scene box (centre {np.array2string(self.center, precision=4)}, radius {self.radius:.4g}, from {self.box_source})"
        if len(self.blind) == len(self.train):
            raise SceneError(f"no camera looks at the {box}: check the poses' convention, or set scene.center and scene.radius")
        pools = pool_of(inside), pool_of(rest)
        if not len(pools[0]) + len(pools[1]):
            raise SceneError(f"nothing is left to learn from: all pixels that see the {box} are to be ignored; or set scene.ignore=none")
        if self.masks is not None and not len(pools[0]):
            raise SceneError(f"no mask shows anything inside the {box}: set scene.center and scene.radius, or use --masks ignore")
        return pools


@np.errstate(all="ignore")  # cameras may be absurd; what comes out is looked at
def load_scene(source: str | Path | Capture, config: SceneConfig | None = None, format: str | None = None) -> Scene:
    """Read photographs, cameras and masks, and find the scene box.

    Args:
        source: a folder (or file) of a known format, or a capture that was loaded already.
        format: which of the formats to take where a folder holds several.

    Raises:
        SceneError: what is missing or contradicts itself, in one line.
    """
    config = config or SceneConfig()
    capture = source if isinstance(source, Capture) else formats.load(Path(source), format, config.masks, config.outside)
    capture = replace(capture, views=tuple(find_ignored(capture.path, capture.views, config.ignore)))
    capture, notes = _reduced(capture, config.max_side)
    if config.convention != "auto":
        capture = conventions.apply(capture, config.convention)
    views = capture.views
    train, test = split(views, config.holdout)
    with_masks = config.masks != "ignore" and (capture.alpha_masks or any(view.mask for view in views))
    store = read_images(views, with_masks, capture.alpha_masks, matte=0 if config.background == "black" else 255)
    if store.coverage is not None and config.invert_masks:
        store = replace(store, coverage=255 - store.coverage)
    if not with_masks and config.masks == "auto" and (found := find_masks(store.images)) is not None:
        store = replace(store, coverage=torch.from_numpy(np.concatenate([mask.reshape(-1) for mask in found])))
        notes.append("no masks, but black surroundings: what is bright before them is taken for the object (--masks ignore to differ)")
    if config.convention == "auto":
        seen = [views[i] for i in train]
        pairs = find_matches(seen, [store.images[i].numpy() for i in train])
        capture = conventions.apply(capture, conventions.found_out(seen, capture.format, pairs))
    masks = None if store.masks is None else [store.masks[i].numpy() for i in train]
    if masks is not None:
        check_masks(masks, [views[i].name for i in train])
    if store.left_out is not None:
        share = float(store.left_out.float().mean())
        saying = sum(view.ignore is not None for view in views)
        notes.append(f"{saying} of {len(views)} photographs say what to ignore: {share:.0%} of all pixels")
    try:
        return Scene(capture, store, choose_box(capture, train, masks, config), train, test, [*capture.notes, *notes])
    except SceneError as e:
        seen, current = [capture.views[i] for i in train], capture.convention or conventions.native(capture.format)
        hint = conventions.suggestion(seen, current, lambda: find_matches(seen, [store.images[i].numpy() for i in train]))
        raise SceneError(f"{e}{hint}") from None


def split(views: Sequence[View], holdout: int) -> tuple[list[int], list[int]]:
    """Indices of training and held-out views: the capture's own split, else every `holdout`-th view is held out."""
    test = [i for i, view in enumerate(views) if view.split == "test"]
    if not test and holdout:
        test = list(range(0, len(views), holdout))
    train = sorted(set(range(len(views))) - set(test))
    if len(train) < 2:
        raise SceneError(f"{len(train)} of {len(views)} photographs are left to learn from, want at least 2: use a larger --holdout, or 0")
    return train, test


def choose_box(capture: Capture, train: Sequence[int], masks: Sequence[np.ndarray] | None, config: SceneConfig) -> Box:
    """The box that the user wants, where not stated found from the training views."""
    if not np.isfinite(np.array([*(config.center or ()), config.radius or 1.0])).all():
        raise SceneError(f"scene.center and scene.radius must be finite, found {config.center} and {config.radius}")
    if config.radius is not None and config.radius <= 0:
        raise SceneError(f"scene.radius must be positive, found {config.radius}")
    if config.center is not None and config.radius is not None:
        return Box(np.array(config.center), config.radius, "configuration")
    try:
        found = find_box([capture.views[i] for i in train], masks, capture.points, capture.box)
    except np.linalg.LinAlgError as e:
        raise SceneError(f"no scene box can be found of these cameras ({e}): set scene.center and scene.radius") from None
    if not np.isfinite(found.center).all() or not 0 < found.radius < np.inf:
        raise SceneError(f"no scene box can be found of these cameras ({found.source}): set scene.center and scene.radius")
    if config.center is not None:
        return Box(np.array(config.center), found.radius, f"configuration; radius from {found.source}")
    if config.radius is not None:
        return Box(found.center, config.radius, f"configuration; centre from {found.source}")
    return found


def check_masks(masks: Sequence[np.ndarray], names: Sequence[str], how: str = "--set scene.invert_masks=true") -> None:
    """Refuse masks that can't be of one object.

    Args:
        how: black and white can be swapped.

    Raises:
        SceneError: all are black, or black and white are swapped.
    """
    if all(mask.max() <= 127 for mask in masks):
        raise SceneError(f"all {len(masks)} masks are black: the object must be bright; replace them, or use --masks ignore")
    border, whole = [], []
    for mask in masks:
        is_object = mask > 127
        edges = [is_object[0], is_object[-1], is_object[:, 0], is_object[:, -1]]
        border.append(np.mean(np.concatenate(edges)))
        whole.append(np.mean(is_object))
    if np.median(border) > 0.75 and np.median(border) > np.median(whole):
        raise SceneError(
            f"masks look inverted: the object fills {np.median(border):.0%} of the pictures' borders but {np.median(whole):.0%} of their "
            f"area (first mask: {names[0]}); {how} swaps black and white, --masks ignore does without"
        )


def _reduced(capture: Capture, max_side: int) -> tuple[Capture, list[str]]:
    """The capture with cameras for photographs of at most `max_side` pixels a side, and a note where that changes any."""
    if max_side < 1:
        raise SceneError(f"scene.max_side must be at least 1 pixel, found {max_side}")
    views = []
    for view in capture.views:
        w, h = view.camera.width, view.camera.height
        scale = min(1.0, max_side / max(w, h))
        views.append(replace(view, camera=rescale(view.camera, max(1, round(w * scale)), max(1, round(h * scale)))))
    changed = sum(a.camera is not b.camera for a, b in zip(views, capture.views, strict=True))
    notes = [f"{changed} of {len(views)} photographs are reduced to at most {max_side} pixels a side"] if changed else []
    return replace(capture, views=tuple(views)), notes
