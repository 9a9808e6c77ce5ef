"""How much brighter each photograph is than the others, per channel, told by points of the surface that several of them show.

A point t that photograph i shows has, in stops (doublings of linear light), the colour y_ti = c_t + g_i in each channel. The gains g that
leave the least squares of what remains are sought, with TIE g^2 beside, so that those of a photograph that shares little with others stay
near 0, and their sum is 0. What remains is large where somebody walks past or a highlight sits: it counts less there (Cauchy's weights).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

POINTS = 30_000  # that are looked at, at most
DARK, BRIGHT = 10, 248  # of 255: beyond, a channel says nothing about light
TIE = 30.0  # observations that a gain of 0 is worth
USUAL = 0.25  # stops between two views of a point, beyond which it counts less
ROUNDS = 10
LEAST = 0.1  # stops: photographs that all differ by less are left as they are
LEFT = 0.7  # of how far two views of a point are apart: gains that leave more are not what they differ by (shading, or passers-by)

Colors = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Light = npt.NDArray[np.floating[Any]]
Photographs = npt.NDArray[np.integer[Any]]


def gains(seen: Colors, whose: Photographs, there: npt.NDArray[np.bool_], n: int) -> Floats:
    """Gains of n photographs in stops, (n, 3); all 0 where it isn't exposure that they differ by.

    Args:
        seen: sRGB colours of points, (p, k, 3).
        whose: photographs that they are from, (p, k) integers in [0, n).
        there: which of them there are, (p, k).
    """
    shared = np.flatnonzero(there.sum(1) > 1)
    shared = shared[:: -(-len(shared) // POINTS) or 1]
    light, of = np.log2(linear(np.arange(256)).clip(1e-6))[seen[shared]], whose[shared].astype(np.int64)
    good = there[shared, :, None] & (seen[shared] >= DARK) & (seen[shared] <= BRIGHT)
    found = np.stack([_solve(light[..., c], of, good[..., c], n) for c in range(3)], 1)
    if np.abs(found).max(initial=0.0) < LEAST or _apart(light - found[of], good) > LEFT * _apart(light, good):
        return np.zeros((n, 3))
    return found


def evened(seen: Colors, whose: Photographs, stops: Floats) -> tuple[Colors, npt.NDArray[np.bool_]]:
    """The same colours (p, k, 3), as photographs without these gains would have them, and which of them were too bright to tell (p, k)."""
    level = linear(np.arange(256))[None, :, None] * np.exp2(-stops)[:, None]  # (n, 256, 3)
    table = (255 * coded(level) + 0.5).clip(0, 255).astype(np.uint8)
    return table[whose[..., None], seen, np.arange(3)], np.asarray(((seen > BRIGHT) & (stops > 0)[whose]).any(-1))


def linear(levels: npt.NDArray[np.integer[Any]]) -> Floats:
    """Light in [0, 1] of sRGB bytes."""
    s = levels / 255
    return np.asarray(np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4))


def coded(light: Light) -> Light:
    """sRGB of light >= 0; the inverse of `linear`, over 255."""
    return np.asarray(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def _apart(y: Floats, good: npt.NDArray[np.bool_]) -> float:
    """Median distance of what is good of y, both (p, k, 3), from its point's mean: stops."""
    count = good.sum(1, keepdims=True)
    off = np.abs(y - np.where(good, y, 0.0).sum(1, keepdims=True) / np.maximum(count, 1))[good & (count > 1)]
    return float(np.median(off)) if len(off) else 0.0


def _solve(y: Floats, whose: npt.NDArray[np.int64], good: npt.NDArray[np.bool_], n: int) -> Floats:
    """Gains (n,) of one channel: y, whose, good (p, k)."""
    g = np.zeros(n)
    w = good.astype(np.float64)
    pairs = (whose[:, :, None] * n + whose[:, None, :]).reshape(-1)
    for _ in range(ROUNDS):
        total = w.sum(1, keepdims=True)
        share = w / np.maximum(total, 1e-12)
        mean = (share * y).sum(1, keepdims=True)
        cross = (w[:, :, None] * share[:, None, :]).reshape(-1)
        matrix = np.diag(np.bincount(whose.reshape(-1), w.reshape(-1), n) + TIE) - np.bincount(pairs, cross, n * n).reshape(n, n)
        g = np.linalg.solve(matrix, np.bincount(whose.reshape(-1), (w * (y - mean)).reshape(-1), n))
        rest = y - g[whose]
        middle = (share * rest).sum(1, keepdims=True)
        w = good / (1.0 + ((rest - middle) / USUAL) ** 2)
    return g
