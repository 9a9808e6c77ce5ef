"""What a running reconstruction tells its owner: events, handed to every hook in order.

A hook is any function of one event. The core makes events and never prints; screens, log files and plots are hooks. What the owner
wants in turn goes through a `Control`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

SETTLED = 1.0  # seconds of even work, from which on they tell how long the rest takes


@dataclass(frozen=True)
class PhaseStarted:
    """`name` is one of read, train, mesh; poses, or its own features, matching, mapping; scene, score, render, eval."""

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
    half_width: float  # of the sampling interval, scene units; 0 where the method has none
    occupied: float  # share of grid cells in use
    hit: float  # share of rays that met a surface
    samples_per_second: float
    skipped: int = 0  # steps so far whose numbers were not finite; they changed nothing


@dataclass(frozen=True)
class Preview:
    """Small pictures of one view as it looks now, and of its photograph, (h, w, 3) uint8."""

    view: str
    rgb: np.ndarray
    normal: np.ndarray
    photo: np.ndarray


@dataclass(frozen=True)
class MeshProgress:
    """`done` in [0, 1] of the current phase, or of the part of it that `detail` names; not in training."""

    done: float
    detail: str = ""
    seconds_left: float | None = None  # estimate, where there is one


@dataclass(frozen=True)
class Note:
    """Something the user should know, one line."""

    text: str


@dataclass(frozen=True)
class Saved:
    """A file was written whole; `what` is mesh, checkpoint, preview, config, log, or what it holds."""

    what: str
    path: Path


@dataclass(frozen=True)
class SceneState:
    """Where one of many scenes stands. `state` is waiting, starting, a phase's name, or at the end done, kept, stopped, failed."""

    name: str
    state: str
    done: float = 0.0  # of the phase, in [0, 1]
    seconds: float = 0.0  # since it was begun
    seconds_left: float | None = None  # estimate
    detail: str = ""


Event = PhaseStarted | PhaseDone | TrainState | Preview | MeshProgress | Note | Saved | SceneState
Hook = Callable[[Event], None]
Wish = Literal["save", "mesh", "view"]


class Control:
    """What the owner of a running reconstruction wants of its training; set from any thread, looked at between steps."""

    def __init__(self, finish: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            finish: makes the `should_stop` of the run true.
        """
        self.finish = finish
        self.paused = False  # the clock of `train.minutes` stands still meanwhile
        self._wanted: deque[Wish] = deque()

    def want(self, wish: Wish) -> None:
        """save: a checkpoint now; mesh: RUN/preview.ply at half the resolution; view: a preview of the next photograph's view."""
        self._wanted.append(wish)

    def wishes(self) -> Iterator[Wish]:
        """Those not looked at yet, once each."""
        while self._wanted:
            yield self._wanted.popleft()


class Phases:
    """Tells the hooks about phases and keeps their times."""

    def __init__(self, events: Hook):
        self.events = events
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> "Phases":
        self.name, self.detail = name, ""
        return self

    def __enter__(self) -> "Phases":
        self.start = time.monotonic()
        self.events(PhaseStarted(self.name))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.seconds[self.name] = time.monotonic() - self.start
            self.events(PhaseDone(self.name, self.seconds[self.name], self.detail))


class Pace:
    """Tells the hooks how far work is that takes as long for each of its parts, and when it will end."""

    def __init__(self, events: Hook, done: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            done: what was done before, in [0, 1].
        """
        self._events, self._before, self._clock = events, done, clock
        self._start = clock()

    def __call__(self, done: float, detail: str = "") -> None:
        """So much is done by now, in [0, 1]."""
        took, share = self._clock() - self._start, done - self._before
        left = took / share * (1 - done) if share > 0 and took >= SETTLED else None
        self._events(MeshProgress(done, detail, left))

    def part(self, k: int, n: int, detail: str) -> Callable[[float], None]:
        """For part k of n: hears how much of that part is done."""
        return lambda done: self((k + done) / n, detail)


def announce(hooks: Sequence[Hook]) -> Hook:
    """One hook that calls them all, in order."""

    def tell(event: Event) -> None:
        for hook in hooks:
            hook(event)

    return tell


def within(events: Hook) -> Hook:
    """A hook for work that is part of a phase: all but its own phases is passed on."""

    def tell(event: Event) -> None:
        if not isinstance(event, PhaseStarted | PhaseDone):
            events(event)

    return tell
