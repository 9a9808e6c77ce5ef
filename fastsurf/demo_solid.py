"""A teapot that never was: the demo's solid, as a signed distance (negative inside), and its looks.

A lobed, glazed body with lid, spout and handle on a hard-edged wooden block with four bored holes. Points are structures of arrays,
`p (3, n)`, so that every operation runs over contiguous memory. z is up, the block stands on z = 0, all of it is about 2.2 units wide.
Colours are linear.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]  # float32 for pictures, float64 for the truth


def distance(p: Array) -> Array:
    """Signed distance (n,) of points p (3, n), negative inside; a lower bound of the true one up to a factor of about 1.1."""
    glaze, trim, wood = _parts(p)
    return np.minimum(np.minimum(glaze, trim), wood)


def _parts(p: Array) -> tuple[Array, Array, Array]:
    """Distances to the three materials: body with lid and spout, handle with knob and foot, block."""
    x, y, z = p
    rho2 = x * x + y * y
    rho = np.sqrt(rho2)

    lobes = _cos8(x, rho) * np.minimum(rho, 0.62)
    body = _ellipsoid(rho2, z - 0.94, 0.62, 0.50) - 0.030 * lobes
    lower = _taper(x, y, z, (0.42, 0.80), (0.82, 0.93), 0.19, 0.125)
    upper = _taper(x, y, z, (0.82, 0.93), (1.01, 1.32), 0.125, 0.085)
    glaze = _smooth_min(body, _smooth_min(lower, upper, 0.12), 0.10)
    lid = _ellipsoid(rho2, z - 1.36, 0.36, 0.12)
    glaze = _smooth_min(glaze, lid, 0.02)
    glaze = np.maximum(glaze, -_taper(x, y, z, (0.955, 1.20), (1.05, 1.42), 0.052, 0.052))  # the spout's mouth

    handle = np.sqrt((np.sqrt((x + 0.67) ** 2 + (z - 0.98) ** 2) - 0.36) ** 2 + y * y) - 0.062
    knob = np.sqrt(rho2 + (z - 1.545) ** 2) - 0.10
    foot = np.sqrt(np.maximum(rho - 0.34, 0) ** 2 + (z - 0.42) ** 2) - 0.085
    trim = np.minimum(np.minimum(handle, knob), foot)

    ax, ay, az = np.abs(x) - 0.66, np.abs(y) - 0.66, np.abs(z - 0.18) - 0.18
    outside = np.sqrt(np.maximum(ax, 0) ** 2 + np.maximum(ay, 0) ** 2 + np.maximum(az, 0) ** 2)
    block = outside + np.minimum(np.maximum(np.maximum(ax, ay), az), 0)
    bores = 0.11 - np.sqrt((ax + 0.18) ** 2 + (ay + 0.18) ** 2)
    return glaze, trim, np.maximum(block, bores)


def _cos8(x: Array, rho: Array) -> Array:
    """cos of eight times the angle round z, by doubling it three times."""
    c = x / np.maximum(rho, 1e-6)
    for _ in range(3):
        c = 2 * c * c - 1
    return c


def _ellipsoid(rho2: Array, z: Array, flat: float, tall: float) -> Array:
    """Distance to an ellipsoid of revolution, exact to first order at its surface."""
    near = np.sqrt(rho2 / (flat * flat) + z * z / (tall * tall))
    slope = np.sqrt(rho2 / flat**4 + z * z / tall**4)
    apart: Array = near * (near - 1) / np.maximum(slope, 1e-6)
    return apart


def _taper(x: Array, y: Array, z: Array, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float) -> Array:
    """Distance to a capsule in the plane y = 0, from `start` (x, z) to `end`, whose radius goes from r0 to r1."""
    dx, dz = end[0] - start[0], end[1] - start[1]
    px, pz = x - start[0], z - start[1]
    along = np.clip((px * dx + pz * dz) / (dx * dx + dz * dz), 0, 1)
    return np.sqrt((px - along * dx) ** 2 + y * y + (pz - along * dz) ** 2) - (r0 + (r1 - r0) * along)


def _smooth_min(a: Array, b: Array, width: float) -> Array:
    blend = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - blend * blend * (0.25 / width)


def normals(p: Array, step: float = 1e-3) -> Array:
    """Outward unit normals (3, n), from four evaluations at the corners of a tetrahedron."""
    n = np.zeros_like(p)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        offset = np.array(corner, p.dtype)[:, None]
        n += offset * distance(p + step * offset)
    n /= np.maximum(np.sqrt((n * n).sum(0)), 1e-12)
    return n


def albedo(p: Array) -> Array:
    """Reflectance (3, n), linear: harlequin glaze, roped copper, walnut."""
    glaze, trim, wood = _parts(p)
    x, y, z = p
    angle = np.arctan2(y, x)
    speckle = np.sin(31 * x + 3 * np.sin(17 * y)) * np.sin(29 * y + 3 * np.sin(19 * z)) * np.sin(33 * z + 3 * np.sin(23 * x))

    rise = z - 0.94
    diamonds = np.sin(8 * angle + 15 * rise) * np.sin(8 * angle - 15 * rise)
    ink = smooth_step(diamonds, 0.04)[None]
    color = mix((0.86, 0.80, 0.66), (0.03, 0.09, 0.36), ink)
    color = mix(color, (0.80, 0.36, 0.04), smooth_step(-diamonds - 0.62, 0.06)[None])
    color = mix(color, (0.05, 0.42, 0.44), smooth_step(diamonds - 0.62, 0.06)[None])
    reach = np.sqrt(x * x + y * y)
    petals = np.sin(38 * reach + 1.7 * np.cos(8 * angle))
    flower = mix((0.88, 0.82, 0.68), (0.03, 0.09, 0.36), smooth_step(petals - 0.25, 0.15)[None])
    flower = mix(flower, (0.66, 0.09, 0.05), smooth_step(petals * np.cos(8 * angle) - 0.72, 0.10)[None])
    flower = mix(flower, (0.80, 0.40, 0.05), smooth_step(-petals * np.sin(16 * angle) - 0.45, 0.12)[None])
    color = mix(color, flower, smooth_step(rise - 0.27, 0.012)[None])
    spiral = np.sin(34 * (0.8 * x + 0.6 * z) + 2.0 * np.arctan2(y, z - 0.3 - 0.9 * x + 0.35))
    on_spout = smooth_step(x - 0.66, 0.015)[None]
    color = mix(color, mix((0.82, 0.75, 0.60), (0.05, 0.42, 0.44), smooth_step(spiral, 0.25)[None]), on_spout)
    color = color * (1 + 0.22 * speckle)

    round_handle = np.arctan2(z - 0.98, x + 0.67)
    across = np.arctan2(y, np.sqrt((x + 0.67) ** 2 + (z - 0.98) ** 2) - 0.36)
    rope = np.sin(np.where(x < -0.3, 22 * round_handle + 2 * across, 9 * angle + 40 * z))
    copper = mix((0.62, 0.20, 0.07), (0.90, 0.52, 0.20), smooth_step(rope, 0.4)[None]) * (1 + 0.3 * speckle)

    warp = 0.05 * np.sin(5 * x + 1) + 0.04 * np.sin(7 * y + 4 * x) + 0.03 * np.sin(9 * z + 3 * y)
    rings = np.sqrt((y + 0.35 + warp) ** 2 + (1.5 * z + 0.5 + 0.25 * x + warp) ** 2)
    grain = 0.5 + 0.5 * np.sin(70 * rings + 2.5 * np.sin(6 * x + 4 * y))
    fibre = np.sin(90 * (y + warp) + 3 * np.sin(5 * x)) * np.sin(85 * (z + 0.3 * warp) + 6 * np.sin(3 * x)) * np.sin(14 * x + 9 * y)
    walnut = mix((0.42, 0.21, 0.085), (0.13, 0.05, 0.02), (grain * grain)[None]) * (1 + 0.35 * fibre + 0.2 * speckle)

    least = np.minimum(np.minimum(glaze, trim), wood)
    chosen: Array = np.where(wood == least, walnut, np.where(trim == least, copper, color)).clip(0.01, 0.95)
    return chosen


def radiance(p: Array, n: Array, to_eye: Array | None) -> Array:
    """Light (3, n) that leaves p: sky and ground, a key light with soft shadows, a fill light, and highlights towards `to_eye (3, n)`."""
    key, fill = _unit(0.45, -0.55, 0.75, p.dtype), _unit(-0.75, 0.35, 0.25, p.dtype)
    openness = _openness(p, n)
    lit = np.maximum((n * key).sum(0), 0)
    lit = lit * _unshadowed(p + 4e-3 * n, key, lit > 0)
    sky = 0.5 + 0.5 * n[2]
    ambient = (_column(0.34, 0.30, 0.27) + _column(0.18, 0.24, 0.31) * sky) * openness
    light = ambient + _column(0.98, 0.92, 0.82) * lit + _column(0.16, 0.19, 0.24) * (np.maximum((n * fill).sum(0), 0) * openness)
    color: Array = albedo(p) * light.astype(p.dtype)
    if to_eye is not None:
        half = key + to_eye
        half /= np.sqrt((half * half).sum(0))
        shine = np.maximum((n * half).sum(0), 0) ** 40 * (lit > 0) * np.where(p[2] > 0.37, 0.30, 0.05)
        color = color + shine * np.minimum(lit * 4, 1)
    return color


def _openness(p: Array, n: Array) -> Array:
    """How freely p sees its surroundings, (n,) in [0, 1]: distances met on a short walk along the normal."""
    closed = np.zeros(p.shape[1], p.dtype)
    for walk, weight in ((0.03, 0.9), (0.08, 0.6), (0.17, 0.4), (0.34, 0.25)):
        closed += weight / walk * np.maximum(walk - distance(p + walk * n), 0)
    return 1 / (1 + 0.75 * closed)


def _unshadowed(p: Array, light: Array, lit: npt.NDArray[np.bool_]) -> Array:
    """Share of the key light (n,) that reaches p: 1 minus how closely anything comes to the way there."""
    share = np.ones(p.shape[1], p.dtype)
    active = np.flatnonzero(lit)
    t = np.full(len(active), 0.02, p.dtype)
    for _ in range(40):
        d = distance(p[:, active] + t * light)
        share[active] = np.minimum(share[active], np.maximum(d, 0) * 12 / t)
        t = t + np.maximum(d, 0.015)
        keep = (d > 1e-3) & (t < 2.2)
        active, t = active[keep], t[keep]
        if not len(active):
            break
    return share * share * (3 - 2 * share)


def mix(a: Any, b: Any, share: Array) -> Array:
    """Colours from a to b, each (3,) or (3, n), by `share (n,)` or (1, n), 0 to 1."""
    a, b = (np.array(c, share.dtype)[:, None] if isinstance(c, tuple) else c for c in (a, b))
    mixed: Array = a + (b - a) * share
    return mixed


def smooth_step(v: Array, width: float) -> Array:
    """0 below -width, 1 above width, smooth between: edges a pixel or two wide instead of jagged."""
    s: Array = np.clip(0.5 + 0.5 * v / width, 0, 1)
    s = s * s * (3 - 2 * s)
    return s


def _unit(x: float, y: float, z: float, dtype: npt.DTypeLike) -> Array:
    v = np.array([[x], [y], [z]], dtype)
    v /= np.sqrt((v * v).sum())
    return v


def _column(r: float, g: float, b: float) -> npt.NDArray[np.float32]:
    return np.array([[r], [g], [b]], np.float32)
