"""Layout of the multiresolution hash encoding (Müller et al. 2022), equal to tiny-cuda-nn's `HashGrid` on every backend.

For level l, all in float32: scale_l = 2^(l log2 growth) base - 1, resolution_l = ceil(scale_l) + 1 vertices an axis. A level
whose resolution^3 vertices, rounded up to 8, fit into 2^log2_entries entries is dense, the others are hashed. A position x in
[0, 1]^3 lies at scale_l x + 0.5; its cell's 8 corners are blended trilinearly.
"""

import math
from dataclasses import dataclass

import numpy as np

PRIMES = (1, 2654435761, 805459861)
FEATURES = 2  # per entry


@dataclass(frozen=True)
class Level:
    """One level of the table; `offset` and `size` count entries."""

    scale: float
    resolution: int
    offset: int
    size: int

    @property
    def hashed(self) -> bool:
        return self.size < self.resolution**3


def growth(levels: int, base_resolution: int, finest_resolution: int) -> float:
    """Factor from level to level."""
    return 1.0 if levels == 1 else (finest_resolution / base_resolution) ** (1 / (levels - 1))


def level_table(levels: int, log2_entries: int, base_resolution: int, per_level_scale: float) -> tuple[Level, ...]:
    """tiny-cuda-nn's table of levels.

    Raises:
        ValueError: the scale of a dense level lies so close to an integer that another machine's rounding could change the
            layout (tiny-cuda-nn issue 148).
    """
    log2_scale = np.log2(np.float32(per_level_scale), dtype=np.float32)
    table, offset = [], 0
    for level in range(levels):
        scale = np.exp2(np.float32(level) * log2_scale, dtype=np.float32) * np.float32(base_resolution) - np.float32(1)
        resolution = math.ceil(scale) + 1
        vertices = -(-(resolution**3) // 8) * 8
        size = min(vertices, 2**log2_entries)
        if level and size >= resolution**3 and abs(scale - round(float(scale))) < 1e-2:
            raise ValueError(f"scale {scale} of dense level {level} is too close to an integer: change the finest resolution")
        table.append(Level(float(scale), resolution, offset, size))
        offset += size
    return tuple(table)


def stable_finest(levels: int, log2_entries: int, base_resolution: int, finest_resolution: int) -> int:
    """The first resolution from `finest_resolution` upwards whose layout no rounding can change (see `level_table`)."""
    while True:
        try:
            level_table(levels, log2_entries, base_resolution, growth(levels, base_resolution, finest_resolution))
            return finest_resolution
        except ValueError:
            finest_resolution += 1


def entries(table: tuple[Level, ...]) -> int:
    """Number of entries of all levels together."""
    return table[-1].offset + table[-1].size
