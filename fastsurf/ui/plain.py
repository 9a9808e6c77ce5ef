"""Plain lines for logs, pipes and small terminals: one for each end of a phase, and one every ten seconds between."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TextIO

from ..hooks import Event, MeshProgress, Note, PhaseDone, PhaseStarted, SceneState, TrainState

EVERY = 10.0  # seconds between two lines of one phase


class Plain:
    """A hook that writes lines as they are due; `stopping` says whether the user has asked to finish early."""

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._stream, self._clock, self._stopping = stream, clock, stopping
        self._heard = False
        self._phase, self._due = "", 0.0
        self._scenes: dict[str, tuple[str, float]] = {}  # of many: the state last told, and when the next line is due

    def __call__(self, event: Event) -> None:
        now = self._clock()
        if isinstance(event, MeshProgress) and self._stopping() and not self._heard:
            self._heard = True
            self._line(self._phase, "is being made whole; Ctrl-C again stops at once and keeps the last checkpoint")
        match event:
            case PhaseStarted(name, detail):
                self._phase, self._due = name, now + EVERY
                self._line(name, detail or "started")
            case PhaseDone(name, seconds, detail):
                self._line(name, f"done in {duration(seconds)}" + (f": {detail}" if detail else ""))
            case TrainState() if event.step == 1 or now >= self._due:
                self._due = now + EVERY
                self._line(self._phase, step_line(event))
            case MeshProgress(done, detail, left) if now >= self._due:
                self._due = now + EVERY
                self._line(self._phase, f"{done:4.0%}  {detail}".rstrip() + (f"  {duration(left)} left" if left is not None else ""))
            case Note(text):
                self._line("note", text)
            case SceneState(name, state) if state != "waiting":
                told, due = self._scenes.get(name, ("", 0.0))
                if state != told or now >= due:
                    self._scenes[name] = (state, now + EVERY)
                    self._line(name, scene_line(event))
            case _:
                pass

    def _line(self, label: str, text: str) -> None:
        self._stream.write(f"{label:<6} {text}\n")
        self._stream.flush()

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class Silent:
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        pass

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


def step_line(state: TrainState) -> str:
    """One training step in words, ASCII only."""
    interval = f"  interval {state.half_width:.3f}" if state.half_width else ""
    return (
        f"{state.progress:4.0%}  step {state.step}  loss {state.loss:.4f}  psnr {state.psnr:.1f} dB{interval}  "
        f"occupied {state.occupied:.1%}  {quantity(state.samples_per_second)} samples/s  {duration(state.seconds_left)} left"
        + (f"  {state.skipped} skipped" if state.skipped else "")
    )


def scene_line(scene: SceneState) -> str:
    """How one of many scenes stands, in words."""
    if scene.state in ("done", "stopped", "failed", "kept"):
        took = f" in {duration(scene.seconds)}" if scene.seconds else ""
        return f"{scene.state}{took}" + (f": {scene.detail}" if scene.detail else "")
    left = f"  {duration(scene.seconds_left)} left" if scene.seconds_left is not None else ""
    return scene.state + (f" {scene.done:4.0%}{left}  {scene.detail}" if scene.detail else "")


def closing_lines(
    path: str, faces: int, size: Sequence[float], solid: str, seconds: Mapping[str, float], next_command: str, stopped: bool,
    units: str = "in the units of the input",
) -> list[str]:  # fmt: skip
    """What stays on the screen at the end.

    Args:
        size: extent of the mesh along x, y, z in the file's units.
        solid: whether it is watertight, and what else is known, in a few words.
        seconds: by phase.
    """
    return [
        f"mesh   {path}" + ("  (stopped early)" if stopped else ""),
        f"faces  {faces:,}",
        f"size   {_size(size)} {units}",
        f"solid  {solid}",
        f"time   {_times(seconds)}",
        f"next   {next_command}",
    ]


def points_lines(
    path: str, points: int, size: Sequence[float], seconds: Mapping[str, float], next_command: str, stopped: bool,
    units: str = "in the units of the input",
) -> list[str]:  # fmt: skip
    """What stays on the screen where points were written instead of a mesh; see `closing_lines`."""
    return [
        f"points {path}" + ("  (stopped early)" if stopped else ""),
        f"number {points:,}, with normals and colours",
        f"size   {_size(size)} {units}, of the surface that they lie on",
        f"time   {_times(seconds)}",
        f"next   {next_command}",
    ]


def _size(size: Sequence[float]) -> str:
    return " x ".join(f"{length:.4g}" for length in size)


def _times(seconds: Mapping[str, float]) -> str:
    """All phases together, and each."""
    return f"{duration(sum(seconds.values()))} ({', '.join(f'{name} {duration(s)}' for name, s in seconds.items())})"


def placed_lines(
    path: str, placed: tuple[int, int], points: int, error: float, track: float, cameras: Sequence[tuple[str, float, int, int]],
    seconds: Mapping[str, float], next_command: str,
) -> list[str]:  # fmt: skip
    """What stays on the screen when cameras have been found.

    Args:
        placed: photographs with a pose, of how many.
        error: mean reprojection error, pixels.
        track: photographs that a point is seen in, on average.
        cameras: model, focal length, width and height of each.
        seconds: by phase; empty when nothing was left to do.
    """
    model, focal, width, height = cameras[0]
    lens = f"{model}, focal length {focal:.0f} pixels of {width} x {height}" if len(cameras) == 1 else f"{len(cameras)} different ones"
    return [
        f"scene  {path}",
        f"placed {placed[0]} of {placed[1]} photographs, off by {error:.2f} pixels on average",
        f"points {points:,}, each seen in {track:.1f} photographs",
        f"camera {lens}",
        f"time   {_times(seconds) if seconds else 'none: it was finished before'}",
        f"next   {next_command}",
    ]


def duration(seconds: float) -> str:
    """0:07, 12:34, 1:02:03; ?:?? when not known."""
    if not 0 <= seconds < 1e7:
        return "?:??"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quantity(number: float) -> str:
    """Three digits and k, M or G: 41.2 k, 1.2 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:  # or it would be rounded to 1e+03 of the letter before
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
