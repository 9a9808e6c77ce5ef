"""Which photographs differ from their neighbours: blurred, too dark or too bright, or the same photograph twice.

Only some pixels are read, evenly spread: a hundred photographs take a fraction of a second. With masks, those of the object count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

SAMPLES = 200  # along each side of a photograph, about
FEWEST = 200  # of them on the object; fewer say nothing
NEIGHBOURS = 6  # that look in the most similar directions
THUMBNAIL = 16
GAMMA = 2.2  # of the bytes, about


@dataclass(frozen=True, eq=False)
class Quality:
    """Of n photographs.

    Attributes:
        sharpness: log2 of the variance of the Laplacian over that of the brightness (Pech-Pacheco et al. 2000), (n,); NaN: can't be told.
        stops: mean log2 of the light, (n,); NaN: can't be told.
        thumbnails: (n, THUMBNAIL^2 * 3) bytes.
    """

    sharpness: Floats
    stops: Floats
    thumbnails: Floats


def measure(images: Sequence[Bytes], masks: Sequence[Bytes] | None) -> Quality:
    """Look at photographs (h, w, 3) with their masks (h, w), 255 is object."""
    found = [_look(image, None if masks is None else masks[i]) for i, image in enumerate(images)]
    sharpness, stops = (np.array([f[k] for f in found]) for k in (0, 1))
    return Quality(sharpness, stops, np.stack([_thumbnail(image) for image in images]))


def residuals(values: Floats, directions: Floats) -> Floats:
    """How far each value (n,) is from the median of those of its neighbours, by unit directions (n, 3); NaN where it isn't known."""
    likeness = directions @ directions.T
    np.fill_diagonal(likeness, -np.inf)
    likeness[:, ~np.isfinite(values)] = -np.inf
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : min(NEIGHBOURS, np.isfinite(values).sum() - 1)]
    return values - np.median(values[nearest], axis=1) if nearest.shape[1] else np.full(len(values), np.nan)


def outliers(off: Floats, least: float, z: float) -> npt.NDArray[np.intp]:
    """Indices of the residuals (n,) that are off by at least `least`, and by `z` robust standard deviations of them all."""
    known = off[np.isfinite(off)]
    spread = 1.4826 * float(np.median(np.abs(known - np.median(known)))) if len(known) else 0.0
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(np.abs(off) > max(least, z * spread))


def alike(thumbnails: Floats, most: float) -> list[tuple[int, int]]:
    """Pairs of thumbnails (n, m) whose mean difference is at most `most` bytes, and which are not of one colour."""
    squares = (thumbnails**2).sum(-1)
    distance = squares[:, None] + squares - 2 * thumbnails @ thumbnails.T  # of squares; bounds the mean difference
    near = np.argwhere(np.triu(distance <= 4 * most**2 * thumbnails.shape[1] + 1e-6, 1))
    textured = thumbnails.std(-1) > 2
    return [(i, j) for i, j in near.tolist() if textured[i] and np.abs(thumbnails[i] - thumbnails[j]).mean() <= most]


def _look(image: Bytes, mask: Bytes | None) -> tuple[float, float]:
    """Sharpness and stops of one photograph."""
    h, w = image.shape[:2]
    if min(h, w) < 8:
        return float("nan"), float("nan")
    step = max(1, round((h * w) ** 0.5 / SAMPLES))

    def at(picture: Bytes, right: int, down: int) -> npt.NDArray[np.int32]:
        return picture[2 + down : h - 2 + down : step, 2 + right : w - 2 + right : step].astype(np.int32)

    green = image[..., 1]
    here = at(green, 0, 0)
    inside = np.ones(here.shape, bool)
    if mask is not None:
        for right, down in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)):
            inside &= at(mask, right, down) > 127
    if inside.sum() < FEWEST:
        return float("nan"), float("nan")
    laplacian = (4 * here - at(green, 1, 0) - at(green, -1, 0) - at(green, 0, 1) - at(green, 0, -1))[inside]
    light = here[inside]
    contrast = float(light.var())
    sharpness = float(np.log2(laplacian.var() / contrast + 1e-6)) if contrast > 4 else float("nan")
    return sharpness, float(GAMMA * np.log2((light + 1) / 256).mean())


def _thumbnail(image: Bytes) -> Floats:
    from PIL import Image

    small = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=1.0)
    return np.asarray(small, np.float64).ravel()
