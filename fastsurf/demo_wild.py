"""What spoils photographs taken in the wild, for the demo's solid: exposure, white balance, passers-by, and a world behind.

Light is linear, (3, h, w) or (3, n). Positions in a picture are shares of its edge, x to the right and y downwards. Passers-by are made of
tapered capsules, shaded as if they were round; each of them stands in one picture only.
"""

from dataclasses import dataclass

import numpy as np

from .demo_solid import Array, mix, smooth_step

DOME = 15.0  # radius of the world behind, round the world's origin
SUN = np.array([0.45, -0.55, 0.75]) / np.linalg.norm([0.45, -0.55, 0.75])  # the solid's key light
LAMP = np.array([0.5, -0.6, 0.62])  # on passers-by, in the picture's axes, towards the viewer
BALLOONS = 0.3  # share of passers-by that are no people


@dataclass(frozen=True)
class Wild:
    """How training photographs differ from clean ones; held-out ones share the sky alone."""

    exposure: float = 0.0  # stops that a photograph is too bright or too dark by, at most
    white_balance: float = 0.0  # stops between red and blue, at most, towards either
    occluders: int = 0  # passers-by in front, in each photograph others
    occluder_masks: bool = False  # write where they are
    sky: bool = False  # a world behind the solid in place of transparency


@dataclass(frozen=True)
class Light:
    """What the camera was set to, in stops against a clean photograph."""

    exposure: float = 0.0
    white_balance: float = 0.0  # positive is warm

    @property
    def gains(self) -> Array:
        """Factors (3, 1, 1) on linear light."""
        stops = self.exposure + self.white_balance * np.array([0.5, 0.0, -0.5])
        factors: Array = np.exp2(stops).astype(np.float32)[:, None, None]
        return factors


@dataclass(frozen=True)
class Capsule:
    """From `start (x, y)` to `end`, its radius from r0 to r1; bands across it are darker."""

    start: tuple[float, float]
    end: tuple[float, float]
    r0: float
    r1: float
    color: tuple[float, float, float]
    bands: float = 0.0  # along its length


def lights(wild: Wild, n: int, seed: int) -> list[Light]:
    """The settings of n photographs: spread evenly over the range, so that their mean is clean, in random order."""
    rng = np.random.default_rng([seed, 1])
    steps = np.linspace(-1, 1, n) if n > 1 else np.zeros(n)
    return [Light(wild.exposure * e, wild.white_balance * w) for e, w in zip(rng.permutation(steps), rng.permutation(steps), strict=True)]


def passers_by(n: int, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """n of them, one before the other: their light (3, size, size), and how much of each pixel they cover (size, size)."""
    light, cover = np.zeros((3, size, size), np.float32), np.zeros((size, size), np.float32)
    for _ in range(n):
        parts = balloons(rng) if rng.random() < BALLOONS else person(rng)
        theirs, covered = draw_figure(parts, size)
        light += (theirs - light) * covered
        cover += (1 - cover) * covered
    return light, cover


def person(rng: np.random.Generator) -> list[Capsule]:
    """Somebody on the way across the picture."""
    tall, x, feet = rng.uniform(0.45, 0.95), rng.uniform(0.15, 0.85), rng.uniform(0.78, 1.15)
    stride, swing, turned = rng.uniform(-0.09, 0.09), rng.uniform(-0.07, 0.07), rng.choice([-1, 1])
    coat, trousers = _color(rng, 0.05, 0.75), _color(rng, 0.03, 0.4)
    skin = tuple(float(c) for c in rng.uniform(0.25, 1.0) * np.array([0.75, 0.50, 0.38]))
    bands = float(rng.choice([0.0, rng.uniform(20, 60)]))

    def at(right: float, up: float) -> tuple[float, float]:
        return x + turned * tall * right, feet - tall * up

    def limb(a: tuple[float, float], b: tuple[float, float], r0: float, r1: float, color: tuple[float, ...], bands: float = 0) -> Capsule:
        return Capsule(at(*a), at(*b), tall * r0, tall * r1, (color[0], color[1], color[2]), bands)

    return [
        limb((-0.045, 0.50), (-0.05 - stride, 0.03), 0.055, 0.035, trousers),
        limb((0.045, 0.50), (0.05 + stride, 0.03), 0.055, 0.035, trousers),
        limb((-0.12, 0.77), (-0.14 - swing, 0.47), 0.035, 0.028, coat),
        limb((0.0, 0.76), (0.0, 0.53), 0.105, 0.085, coat, bands),
        limb((0.12, 0.77), (0.14 + swing, 0.47), 0.035, 0.028, coat),
        limb((0.01, 0.92), (0.01, 0.91), 0.060, 0.060, skin),
        limb((-0.005, 0.945), (-0.01, 0.93), 0.055, 0.052, tuple(float(c) for c in rng.uniform(0.02, 0.3) * np.array([1.0, 0.8, 0.6]))),
    ]


def balloons(rng: np.random.Generator) -> list[Capsule]:
    """A bunch of bright round things."""
    x, y, size = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.06, 0.11)
    parts = []
    for dx, dy in rng.normal(0, 0.8 * size, (rng.integers(2, 5), 2)):
        r = float(size * rng.uniform(0.6, 1.1))
        parts.append(Capsule((x + dx, y + dy - 0.2 * r), (x + dx, y + dy + 0.5 * r), r, 0.7 * r, _color(rng, 0.05, 0.9)))
    return parts


def draw_figure(parts: list[Capsule], size: int) -> tuple[Array, Array]:
    """Light (3, size, size) and coverage (size, size) of a figure; of parts that overlap the one that is deepest there shows."""
    y, x = (np.indices((size, size), np.float32) + 0.5) / size
    nearest = np.full((size, size), np.inf, np.float32)
    light = np.zeros((3, size, size), np.float32)
    for part in parts:
        (x0, y0), (x1, y1) = part.start, part.end
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        right, down = x - x0 - along * dx, y - y0 - along * dy
        radius = part.r0 + along * (part.r1 - part.r0)
        off = np.hypot(right, down)
        squeeze = np.minimum(1 / radius, 1 / np.maximum(off, 1e-6))  # what sticks out by part of a pixel is shaded as the rim
        front = np.sqrt(np.maximum(1 - (off * squeeze) ** 2, 0))
        shade = 0.35 + 0.75 * np.maximum(LAMP[0] * right * squeeze + LAMP[1] * down * squeeze + LAMP[2] * front, 0)
        if part.bands:
            shade = shade * (0.72 + 0.28 * np.sign(np.sin(part.bands * along)))
        first = off - radius < nearest
        nearest = np.where(first, off - radius, nearest)
        light = np.where(first, shade * np.array(part.color, np.float32)[:, None, None], light)
    cover: Array = np.clip(0.5 - nearest * size, 0, 1).astype(np.float32)
    return light.astype(np.float32), cover


def dome(eye: Array, d: Array) -> Array:
    """Light (3, n) that arrives at `eye (3, 1)` along unit directions d (3, n) from a sky with clouds, hills and meadows all round."""
    towards = (eye * d).sum(0)
    p = (eye + (np.sqrt(towards**2 + DOME**2 - (eye * eye).sum(0)) - towards) * d) / DOME
    x, y, z = p
    turn = np.arctan2(y, x)
    blur = 2 * np.sin(3 * x + 2 * np.sin(4 * y)) + np.sin(7 * y - 5 * z + 2 * np.sin(6 * x)) + 0.5 * np.sin(17 * x + 13 * z + 9 * y)
    sky = mix((0.62, 0.74, 0.86), (0.16, 0.36, 0.72), np.sqrt(np.clip(z, 0, 1)))
    sky = mix(sky, (0.92, 0.92, 0.94), 0.85 * smooth_step(blur - 0.8, 0.9))
    sun = np.maximum((p * SUN[:, None]).sum(0), 0)
    sky = sky + 0.5 * sun**40 * np.array([[1.0], [0.9], [0.7]])

    patch = np.sin(9 * x + 3 * np.sin(7 * y)) * np.sin(8 * y + 3 * np.sin(6 * x + 5 * z))
    blades = np.sin(41 * x + 4 * np.sin(19 * y)) * np.sin(37 * y + 3 * np.sin(23 * z)) * np.sin(31 * z + 11 * x)
    meadow = mix((0.14, 0.24, 0.06), (0.34, 0.30, 0.12), smooth_step(patch, 0.5)) * (1 + 0.35 * blades)
    meadow = mix(meadow, (0.45, 0.42, 0.38), smooth_step(0.08 - np.abs(x + 0.35 * np.sin(5 * y)), 0.03))  # a path
    hills = 0.10 + 0.05 * np.sin(3 * turn + 1) + 0.03 * np.sin(7 * turn) + 0.008 * np.sin(23 * turn)
    far = mix((0.10, 0.17, 0.13), (0.30, 0.40, 0.48), np.clip(z / 0.15, 0, 1)) * (1 + 0.2 * blades)
    light = mix(mix(meadow, far, smooth_step(z + 0.04, 0.01)), sky, smooth_step(z - hills, 0.006))
    return np.maximum(light, 0).astype(np.float32)


def _color(rng: np.random.Generator, least: float, most: float) -> tuple[float, float, float]:
    r, g, b = rng.uniform(least, most, 3)
    return float(r), float(g), float(b)
