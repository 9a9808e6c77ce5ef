"""What a running reconstruction tells its owner: events, handed to every hook in order.

A hook is any function of one event. The core makes events and never prints; screens, log files and plots are hooks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class PhaseStarted:
    """`name` is one of read, train, mesh."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class PhaseDone:
    """A phase ended after `seconds`; `detail` is a few words on its outcome."""

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class TrainState:
    """One training step has been made. What is shown and logged; plain numbers, safe to keep."""

    step: int
    progress: float  # in [0, 1]
    seconds: float  # of training so far, resumed parts included
    seconds_left: float  # estimate
    loss: float
    psnr: float  # dB, of the rays of recent steps
    losses: dict[str, float]  # each by name, weighted
    half_width: float  # of the sampling interval, scene units
    occupied: float  # share of grid cells in use
    hit: float  # share of rays that met a surface
    samples_per_second: float


@dataclass(frozen=True)
class Preview:
    """Small pictures of one view as it looks now, (h, w, 3) uint8."""

    view: str
    rgb: np.ndarray
    normal: np.ndarray


@dataclass(frozen=True)
class MeshProgress:
    """`done` in [0, 1] of the current mesh phase."""

    done: float
    detail: str = ""


@dataclass(frozen=True)
class Note:
    """Something the user should know, one line."""

    text: str


@dataclass(frozen=True)
class Saved:
    """A file was written whole; `what` is mesh, checkpoint, preview, config or log."""

    what: str
    path: Path


Event = PhaseStarted | PhaseDone | TrainState | Preview | MeshProgress | Note | Saved
Hook = Callable[[Event], None]
