"""What a reconstruction will take with each preset, on a CPU.

Time is the preset's own: `train.minutes` is for everything, from photographs to mesh. Memory is a sum fitted to the peaks of short runs
(`fastsurf reconstruct SCENE --steps 100`, Linux x86-64, two cores, torch 2.13): 607 MB for nefertiti, 507 MB with quick, 839 MB for the
fox. The sum gives 589, 528 and 835.
"""

import os
from dataclasses import dataclass

from .config import Config, load_config
from .doctor import Finding
from .encoding import FEATURES, entries, growth, level_table, stable_finest
from .info import suggested_resolution
from .scene import Scene
from .training import DEFAULT_MINUTES

PRESETS = ("default", "quick", "object", "scene")
LIBRARIES, WORK = 225.0, 225.0  # MB, of Python and its libraries, and of samples, grid and mesh
PHOTOGRAPHS = 1.45  # times their bytes in memory: lists of pixels, and decoding
COPIES = 4  # of the table: values, gradients, two moments


@dataclass(frozen=True)
class Estimate:
    """Of one preset."""

    preset: str
    minutes: float
    megabytes: int


def estimate(scene: Scene) -> list[Estimate]:
    """What each preset takes."""
    found = []
    for name in PRESETS:
        config = load_config(None if name == "default" else name)
        found.append(Estimate(name, config.train.minutes or DEFAULT_MINUTES["cpu"], round(megabytes(scene, config))))
    return found


def megabytes(scene: Scene, config: Config) -> float:
    """Peak memory of a reconstruction."""
    f = config.field
    finest = stable_finest(f.levels, f.log2_entries, f.base_resolution, f.finest_resolution or suggested_resolution(scene))
    table = level_table(f.levels, f.log2_entries, f.base_resolution, growth(f.levels, f.base_resolution, finest))
    photographs = sum(image.numel() for image in [*scene.images, *(scene.masks or [])])
    return LIBRARIES + WORK + (PHOTOGRAPHS * photographs + COPIES * 4 * FEATURES * entries(table)) / 1e6


def memory(needed: list[Estimate]) -> list[Finding]:
    """Whether this machine has so much; nothing where it can't be told."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return []
    there, most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6, max(e.megabytes for e in needed)
    if most < 0.8 * there:
        return []
    text = f"a reconstruction takes about {most / 1000:.1f} GB of memory, and this machine has {there / 1000:.1f} GB"
    return [Finding("doubtful", "memory", text, "--set scene.max_side=800")]
