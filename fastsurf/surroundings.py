"""Masks for photographs that come without: an object in the dark, before a black cloth for instance.

Surroundings are what is dark and touches the picture's border; and what the object encloses, if it is quite black (between columns,
through a handle). Brightness is the largest of a pixel's three bytes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

BLACK = 8  # brightness of half of a border, at most
DARK = 64  # and of nearly all of it: folds of a cloth catch light
STRAYS = 0.01  # of a border, that may be brighter
SMALLEST_HOLE = 1e-3  # of a picture; black specks on the object are no holes
SMALLEST_PART = 0.01  # of the largest part of an object; less is dust
SHARES = (0.005, 0.9)  # of a picture that an object fills

Bytes = npt.NDArray[np.uint8]


def find_masks(images: Sequence[Tensor]) -> list[Bytes] | None:
    """Masks (h, w) uint8, 255 is object, of photographs (h, w, 3) uint8; None unless all of them have black surroundings."""
    brightest = 0.0
    for image in images:
        border = _border(image.numpy()).max(-1)
        dark = float(np.quantile(border, 1 - STRAYS))
        if np.median(border) > BLACK or dark > DARK:
            return None
        brightest = max(brightest, dark)
    masks = [_mask(image.numpy().max(-1), max(BLACK, brightest)) for image in images]
    low, high = SHARES
    return masks if all(low < float(mask.mean()) / 255 < high for mask in masks) else None


def _border(image: Bytes) -> Bytes:
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _mask(brightness: Bytes, dark: float) -> Bytes:
    """Of one photograph, (h, w)."""
    from PIL import Image, ImageFilter
    from scipy.ndimage import label, median

    calm = np.asarray(Image.fromarray(brightness).filter(ImageFilter.MedianFilter(3)))  # without the sensor's noise
    region, n = label(calm <= dark)
    black = median(calm, region, np.arange(n + 1)) <= BLACK
    outside = black & (np.bincount(region.ravel(), minlength=n + 1) >= SMALLEST_HOLE * region.size)
    outside[_border(region)] = True
    outside[0] = False  # of no region, but bright
    part, n = label(~outside[region])
    size = np.bincount(part.ravel(), minlength=n + 1)
    size[0] = 0
    is_object = (size > 0) & (size >= SMALLEST_PART * size.max())
    mask: Bytes = np.where(is_object[part], 255, 0).astype(np.uint8)
    return mask
