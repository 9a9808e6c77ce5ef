"""Photographs and masks, decoded into memory as bytes. Colours stay straight: they are not multiplied by the mask."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cameras import View
from .errors import SceneError
from .guard import picture

DECODERS = 4  # threads; each holds one photograph at full size


@dataclass(frozen=True)
class ImageStore:
    """All views in one buffer, view after view and row by row; `images` and `masks` look into it without copying."""

    colors: Tensor  # (n_pixels, 3) uint8
    coverage: Tensor | None  # (n_pixels,) uint8, 255 is object
    offsets: Tensor  # (n_views + 1,) int64, first pixel of each view
    widths: Tensor  # (n_views,) int64
    left_out: Tensor | None = None  # (n_pixels,) bool, not to be learned from

    def to(self, device: torch.device) -> "ImageStore":
        """The same on another device."""
        coverage, left_out = (None if a is None else a.to(device) for a in (self.coverage, self.left_out))
        return ImageStore(self.colors.to(device), coverage, self.offsets.to(device), self.widths.to(device), left_out)

    @property
    def bytes(self) -> int:
        """Memory of colours and masks."""
        return self.colors.numel() + (0 if self.coverage is None else self.coverage.numel())

    def view_shape(self, view: int) -> tuple[int, int]:
        """Height and width."""
        width = int(self.widths[view])
        return int(self.offsets[view + 1] - self.offsets[view]) // width, width

    @property
    def images(self) -> list[Tensor]:
        """(h, w, 3) uint8 of each view."""
        return [self.colors[a:b].view(-1, w, 3) for a, b, w in self._spans()]

    @property
    def masks(self) -> list[Tensor] | None:
        """(h, w) uint8 of each view."""
        return None if self.coverage is None else [self.coverage[a:b].view(-1, w) for a, b, w in self._spans()]

    @property
    def ignored(self) -> list[Tensor] | None:
        """(h, w) bool of each view."""
        return None if self.left_out is None else [self.left_out[a:b].view(-1, w) for a, b, w in self._spans()]

    def _spans(self) -> list[tuple[int, int, int]]:
        ends = self.offsets.tolist()
        return list(zip(ends[:-1], ends[1:], self.widths.tolist(), strict=True))


def read_images(views: Sequence[View], with_masks: bool, alpha_masks: bool, matte: int) -> ImageStore:
    """Decode every view at its camera's size; larger photographs are reduced by averaging.

    Args:
        alpha_masks: the alpha channel is the mask.
        matte: grey level put behind transparent pixels where alpha isn't the mask.

    Raises:
        SceneError: a file can't be read, or a mask has another aspect than its photograph.
    """
    sizes = np.array([v.camera.width * v.camera.height for v in views], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    colors = torch.empty((int(offsets[-1]), 3), dtype=torch.uint8)
    coverage = torch.empty(int(offsets[-1]), dtype=torch.uint8) if with_masks else None
    left_out = torch.zeros(int(offsets[-1]), dtype=torch.bool) if any(view.ignore for view in views) else None

    def read(i: int) -> None:
        span = slice(int(offsets[i]), int(offsets[i + 1]))
        rgb, alpha = _read_photograph(views[i], matte=None if alpha_masks and with_masks else matte)
        colors[span] = torch.from_numpy(rgb.reshape(-1, 3))
        if coverage is not None:
            mask = alpha if alpha_masks and views[i].mask is None else _read_mask(views[i])
            coverage[span] = torch.from_numpy(mask.reshape(-1))
        file = views[i].ignore
        if left_out is not None and file is not None:
            left_out[span] = torch.from_numpy(read_ignored(file, views[i]).reshape(-1))

    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        list(pool.map(read, range(len(views))))
    widths = torch.tensor([v.camera.width for v in views])
    return ImageStore(colors, coverage, torch.from_numpy(offsets), widths, left_out)


def read_coverage(view: View) -> np.ndarray:
    """A view's mask, (h, w) uint8, 255 is object: its file, where it has none its photograph's alpha channel."""
    return _read_photograph(view, matte=None)[1] if view.mask is None else _read_mask(view)


def read_ignored(file: Path, view: View) -> np.ndarray:
    """Where a picture says that pixels of a view are to be ignored, (h, w) bool."""
    return _read_bright(file, view, "take it away") > 127


def _read_photograph(view: View, matte: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Colour (h, w, 3) and alpha (h, w), uint8."""
    from PIL import Image

    size = (view.camera.width, view.camera.height)
    with picture(view.image, "photograph", "replace the file, or take its view out") as file:
        if file.width % 8 == 0 and file.height % 8 == 0:
            file.draft("RGB", size)  # a JPEG decodes faster at 1/2, 1/4 or 1/8; multiples of 8 keep pixels aligned
        photograph = file.convert("RGBA" if "A" in file.getbands() or "transparency" in file.info else "RGB")
    if photograph.size != size:
        photograph = photograph.resize(size, Image.Resampling.BOX)
    pixels = np.array(photograph)
    if pixels.shape[2] == 3:
        return pixels, np.full(pixels.shape[:2], 255, np.uint8)
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    if matte is not None:
        weight = alpha[..., None].astype(np.float32) / 255
        rgb = np.rint(rgb * weight + matte * (1 - weight)).astype(np.uint8)
    return rgb, alpha


def _read_mask(view: View) -> np.ndarray:
    """(h, w) uint8."""
    if view.mask is None:
        raise SceneError(f"no mask for photograph {view.name}, but others have one: add it, or use --masks ignore")
    return _read_bright(view.mask, view, "use --masks ignore")


def _read_bright(file: Path, view: View, or_else: str) -> np.ndarray:
    """A mask of a view, (h, w) uint8; one of zeros and ones is stretched to 255.

    Args:
        or_else: how to go without it.
    """
    from PIL import Image

    size = (view.camera.width, view.camera.height)
    with picture(file, "mask", f"replace it, or {or_else}") as whole:
        mask = whole.convert("RGBA").getchannel("A") if "A" in whole.getbands() else whole.convert("L")
        if mask.getextrema() == (255, 255):  # an opaque alpha channel: the mask is in the colours
            mask = whole.convert("L")
    if abs(mask.width * size[1] - mask.height * size[0]) > max(mask.size) + max(size):
        found, wanted = f"{mask.width}x{mask.height}", f"{size[0]}x{size[1]}"
        raise SceneError(f"mask {file} is {found}, its photograph {wanted}: another aspect; replace it, or {or_else}")
    if mask.getextrema()[1] == 1:
        mask = mask.point(lambda level: 255 * level)
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BOX)
    return np.array(mask)
