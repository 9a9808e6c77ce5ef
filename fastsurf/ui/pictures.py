"""Pictures made of characters: half-blocks for previews and sparklines for curves.

One character cell shows two pixels, one above the other, in the foreground and background colour of an upper half-block.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BARS = "▁▂▃▄▅▆▇█"

Picture = NDArray[np.uint8]  # (h, w, 3)


def half_blocks(picture: Picture, columns: int, rows: int) -> Picture:
    """Fit a picture (h, w, 3) into a field of cells, keeping its aspect.

    Returns:
        (r, c, 2, 3) uint8 with r <= rows, c <= columns: upper and lower colour of each cell.
    """
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    small = _resize(_resize(picture, 2 * max(1, round(height * scale / 2))).swapaxes(0, 1), max(1, round(width * scale)))
    return small.reshape(small.shape[0], -1, 2, 3).swapaxes(0, 1)


def sparkline(values: Sequence[float], width: int) -> str:
    """The curve of `values` in at most `width` characters, lowest to highest; values that are not finite are left out."""
    known = np.array([v for v in values if math.isfinite(v)])
    if not len(known) or width < 1:
        return ""
    means = np.array([part.mean() for part in np.array_split(known, min(width, len(known)))])
    low, span = means.min(), np.ptp(means)
    if span <= 1e-9 * max(1.0, abs(low)):
        return BARS[0] * len(means)
    return "".join(BARS[round(level)] for level in (means - low) / span * (len(BARS) - 1))


class Curve:
    """A curve of any length in at most `most` values: when they run out, neighbours are averaged."""

    def __init__(self, most: int = 64) -> None:
        self.values: list[float] = []
        self._most, self._each, self._sum, self._count = most, 1, 0.0, 0

    def add(self, value: float) -> None:
        """Append one value; those that are not finite are left out."""
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count == self._each:
            self.values.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self.values) == self._most:
            self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)]
            self._each *= 2


def _resize(picture: Picture, length: int) -> Picture:
    """Along the first axis: mean of the pixels that fall into each new one, or the nearest where there are fewer."""
    old = len(picture)
    if length > old:
        return picture[(np.arange(length) * old) // length]
    edges = np.arange(length + 1) * old // length
    sums: NDArray[np.float64] = np.add.reduceat(picture.astype(np.float64), edges[:-1], axis=0)
    means = sums / np.diff(edges)[:, None, None]
    return (means + 0.5).astype(np.uint8)
