"""The live screen: phases, progress, curves and a small picture of what is being learned.

Events are folded into a `Board`; `draw` turns a board into lines of segments without touching the terminal; `Screen` puts them on it,
in the alternate screen so that resizing is harmless. A frame costs a few milliseconds because the picture's cells are kept.
"""

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import FrameType, TracebackType
from typing import Any, TextIO

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ..hooks import Control, Event, MeshProgress, Note, PhaseDone, PhaseStarted, Preview, Saved, SceneState, TrainState
from .keys import Keys, Silence, can_read, watched
from .many import head_lines, scene_lines
from .pictures import Curve, Picture, half_blocks, sparkline
from .plain import duration, quantity

FRAMES_PER_SECOND = 2.0
METRICS = 38  # columns that numbers and curves get at least
CURVE_COLUMNS = 40  # and the most that a curve gets
DOING = 24  # characters beside the bar

Line = list[Segment]

PLAIN, DIM, BOLD = Style(), Style(dim=True), Style(bold=True)
GREEN, CYAN, YELLOW = Style(color="green"), Style(color="cyan"), Style(color="yellow")


@dataclass
class Phase:
    """One phase as it stands: `seconds` is None until it is done, `began` until it starts."""

    began: float | None = None
    seconds: float | None = None
    detail: str = ""


@dataclass
class Board:
    """Everything the screen shows; a hook. Times are `clock`'s."""

    title: str
    phases: dict[str, Phase]
    clock: Callable[[], float] = time.monotonic
    state: TrainState | None = None
    curves: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in ("loss", "psnr", "interval", "occupied", "speed")})
    preview: Preview | None = None
    done: float | None = None  # of the present phase
    doing: str = ""  # a word on it
    left: float | None = None  # seconds of it, where they are known and it is no training
    stepping: bool = False  # whether that is training
    notes: list[str] = field(default_factory=list)
    saved: float | None = None  # time of the last checkpoint
    scenes: dict[str, SceneState] = field(default_factory=dict)  # where there are many
    control: Control | None = None
    keys: Keys = field(default_factory=dict)  # that do something in training

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted(name, detail):
                self.phases.pop(name, None)
                waiting = [other for other, phase in self.phases.items() if phase.began is None]
                self.phases[name] = Phase(self.clock(), None, detail)
                for other in waiting:
                    self.phases[other] = self.phases.pop(other)
                self.done, self.doing, self.left, self.stepping = None, "", None, False
            case PhaseDone(name, seconds, detail):
                self.phases[name] = Phase(0.0, seconds, detail)
                self.done = None
            case TrainState():
                if self.state is not None and event.step < self.state.step:  # another run
                    self.curves = {name: Curve() for name in self.curves}
                self.state, self.done, self.stepping = event, event.progress, True
                numbers = (event.loss, event.psnr, event.half_width, event.occupied, event.samples_per_second)
                for curve, number in zip(self.curves.values(), numbers, strict=True):
                    curve.add(number)
            case Preview():
                self.preview = event
            case MeshProgress(done, detail, left):
                self.done, self.doing, self.left, self.stepping = done, detail, left, False
            case Note(text):
                self.notes.append(text)
            case Saved("checkpoint", _):
                self.saved = self.clock()
            case SceneState(name):
                self.scenes[name] = event
            case _:
                pass

    @property
    def current(self) -> tuple[str, Phase] | None:
        """The phase at work."""
        return next(((name, p) for name, p in self.phases.items() if p.began is not None and p.seconds is None), None)

    @property
    def trains(self) -> bool:
        """Whether it is the training that can be controlled."""
        return self.current is not None and self.current[0] == "train"


def _keys(control: Control) -> Keys:
    """What keys do to a training."""

    def pause() -> None:
        control.paused = not control.paused

    return {
        "p": ("pause", pause), "s": ("save", partial(control.want, "save")), "m": ("mesh", partial(control.want, "mesh")),
        "v": ("view", partial(control.want, "view")), "q": ("finish early", control.finish),
    }  # fmt: skip


class Screen:
    """A hook that keeps a live screen on `stream` while its `with` lasts, and leaves the notes behind."""

    def __init__(
        self, stream: TextIO, title: str, phases: tuple[str, ...], stopping: Callable[[], bool], control: Control | None = None
    ) -> None:
        self.board = Board(title, {name: Phase() for name in phases})
        if control is not None and can_read():
            self.board.control, self.board.keys = control, _keys(control)
        self._stopping = stopping
        self._cells = Cells()
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        live = Live(
            console=self._console, screen=True, refresh_per_second=FRAMES_PER_SECOND, get_renderable=lambda: self,
            redirect_stdout=False, redirect_stderr=False,
        )
        self._stage = Stage(stream, live)
        self._undo = contextlib.ExitStack()

    def __call__(self, event: Event) -> None:
        self.board(event)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        pictures = console.color_system in ("truecolor", "256", "windows")
        lines = draw(self.board, self._cells, width, height, self.board.clock(), self._stopping(), pictures)
        for line in lines:
            yield from line
            yield Segment.line()

    def __enter__(self) -> "Screen":
        atexit.register(self._close)
        strays = Strays(self.board.notes)
        if sys.stderr.isatty():
            self._undo.enter_context(contextlib.redirect_stderr(strays))
        if sys.stdout.isatty():
            self._undo.enter_context(contextlib.redirect_stdout(strays))
        self._undo.enter_context(_on_suspend(self._stage))
        self._stage.take()
        self._undo.enter_context(watched(self.board.keys, lambda: self.board.trains, self._stage.look))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        for note in self.board.notes:
            self._stream.write(f"note   {note}\n")
        self._stream.flush()

    def _close(self) -> None:
        atexit.unregister(self._close)
        self._stage.leave()
        self._undo.close()


class Stage:
    """The terminal as long as it is ours: its mode, and the picture on it. Both are given back while the job is stopped or behind another,
    where it goes on unseen, and taken again when it comes to the front, of which the shell says nothing. From any thread."""

    def __init__(self, stream: TextIO, live: Live) -> None:
        self._stream, self._live = stream, live
        self._silence = Silence()
        self._lock = threading.RLock()
        self._wanted, self._left, self._up = False, False, False

    def take(self) -> None:
        """From now on the picture is wanted."""
        with self._lock:
            self._wanted = not self._left
            self.look()

    def give(self) -> None:
        """For now it is not."""
        with self._lock:
            self._wanted = False
            self._down()

    def leave(self) -> None:
        """Nor ever again."""
        with self._lock:
            self._left = True
            self.give()

    def look(self) -> None:
        """Make it as it should be. To be called now and then, since other jobs come to the front, and set the mode that they like."""
        with self._lock:
            if self._wanted and _is_anothers(self._stream):
                self._down()
            elif self._wanted:
                self._silence.begin()
                if not self._up:
                    self._up = True
                    self._live.start(refresh=True)

    def _down(self) -> None:
        if self._up:
            self._live.stop()
            self._silence.end()
            self._up = False


def _is_anothers(stream: TextIO) -> bool:
    """Whether the terminal is another job's at the moment."""
    try:
        return hasattr(os, "tcgetpgrp") and os.tcgetpgrp(stream.fileno()) != os.getpgrp()
    except (OSError, ValueError):  # it is gone, or none
        return False


class Strays(io.TextIOBase):
    """Stands in for stdout and stderr: what libraries print becomes a note instead of scribbling over the screen."""

    def __init__(self, notes: list[str]) -> None:
        self._notes, self._rest = notes, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        shown = (Text.from_ansi(line.rstrip()).plain for line in lines)  # without colours; of a progress bar how it ended
        self._notes += [line for line in shown if line.strip()]
        return len(text)


class Cells:
    """The preview as segments, made again only when picture or size changes."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._lines: list[Line] = []

    def lines(self, preview: Preview, columns: int, rows: int) -> list[Line]:
        """Colour and normals side by side, each in at most `columns` x `rows` cells."""
        key = (id(preview), columns, rows)
        if key != self._key:
            both = [_segments(half_blocks(picture, columns, rows)) for picture in (preview.rgb, preview.normal)]
            gap = Segment("  ", PLAIN)
            self._key, self._lines = key, [[*left, gap, *right] for left, right in zip(*both, strict=True)]
        return self._lines


def draw(board: Board, cells: Cells, width: int, height: int, now: float, stopping: bool, pictures: bool = True) -> list[Line]:
    """The board as at most `height` lines of exactly `width` columns."""
    inner = width - 4
    head = [_phase_line(board, now), _bar_line(board, inner, stopping), []]
    if board.scenes:
        head = head_lines(board.scenes, inner, stopping)
    notes = [[Segment(note, YELLOW)] for note in board.notes[-2:]]
    room = height - len(head) - len(notes) - 2 - 1  # two borders, and a line kept free below
    body = scene_lines(board.scenes, room) if board.scenes else _body(board, cells if pictures else None, inner, room, now)
    current = board.current
    lines = [_border("╭", "╮", width, f" fastsurf · {board.title} ", f" {current[1].detail} " if current and current[1].detail else "")]
    for line in head + body + notes:
        fitted = Segment.adjust_line_length(line, inner, pad=True)
        lines.append([Segment("│ ", DIM), *fitted, Segment(" │", DIM)])
    lines.append(_border("╰", "╯", width, "", f" {_hint(board, stopping)} "))
    return [Segment.adjust_line_length(line, width) for line in lines[: height - 1]]


def _hint(board: Board, stopping: bool) -> str:
    """What Ctrl-C would do now."""
    if board.scenes:
        return "Ctrl-C again: stop at once, keep the checkpoints" if stopping else "Ctrl-C: finish early and write the meshes"
    if stopping:
        return "Ctrl-C again: stop at once, keep the last checkpoint"
    if board.trains:
        if board.keys:
            words = {key: word for key, (word, _) in board.keys.items()}
            if board.control is not None and board.control.paused:
                words["p"] = "go on"
            return " · ".join(f"{key} {word}" for key, word in words.items())
        return "Ctrl-C: finish early and write the mesh"
    return "Ctrl-C: stop" if board.state is None or "train" not in board.phases else "Ctrl-C twice: stop at once, keep the last checkpoint"


def _border(left: str, right: str, width: int, title: str, end: str) -> Line:
    fill = "─" * max(0, width - 4 - len(title) - len(end))
    return [Segment(left + "─", DIM), Segment(title, BOLD), Segment(fill, DIM), Segment(end, CYAN), Segment("─" + right, DIM)]


def _phase_line(board: Board, now: float) -> Line:
    line: Line = []
    for name, phase in board.phases.items():
        if line:
            line.append(Segment(" ── ", DIM))
        if phase.seconds is not None:
            line += [Segment("✓ ", GREEN), Segment(f"{name} {duration(phase.seconds)}", GREEN)]
        elif phase.began is not None:
            line += [Segment("▶ ", CYAN), Segment(f"{name} {duration(now - phase.began)}", BOLD)]
        else:
            line.append(Segment(f"○ {name}", DIM))
    return line


def _bar_line(board: Board, inner: int, stopping: bool) -> Line:
    current = board.current
    if current is None or board.done is None:
        return []
    words = f"  {board.done:4.0%}"
    if board.stepping and board.state is not None and board.control is not None and board.control.paused and not stopping:
        words += f"  step {board.state.step:,}  paused, and so is the clock"
    elif board.stepping and board.state is not None:
        words += f"  step {board.state.step:,}  {duration(board.state.seconds_left)} left"
    elif board.doing:
        words += f"  {_cut(board.doing, DOING)}"
        words += f"  {duration(board.left)} left" if board.left is not None else ""
    if stopping:
        words += "  finishing early" if board.stepping else "  writing the mesh"
    columns = max(8, inner - len(words))
    full = round(min(max(board.done, 0.0), 1.0) * columns)
    return [Segment("━" * full, GREEN), Segment("─" * (columns - full), DIM), Segment(words, PLAIN)]


def _body(board: Board, cells: Cells | None, inner: int, room: int, now: float) -> list[Line]:
    columns, rows = (inner - METRICS - 4) // 2, room - 1
    left: list[Line] = []
    if cells is not None and board.preview is not None and columns >= 8 and rows >= 4:
        left = cells.lines(board.preview, columns, rows)
        used = sum(len(segment.text) for segment in left[0])
        captions = [Segment(_cut("colour", used // 2 + 1).ljust(used // 2 + 1) + "normals", DIM)]
        left = [Segment.adjust_line_length(captions, used), *left]
        right = _metrics(board, inner - used - 3, now)
        return [
            [*(left[i] if i < len(left) else [Segment(" " * used)]), Segment("   ", PLAIN), *(right[i] if i < len(right) else [])]
            for i in range(min(room, max(len(left), len(right))))
        ]
    return _metrics(board, inner, now)[:room]


def _metrics(board: Board, width: int, now: float) -> list[Line]:
    state = board.state
    if state is None:
        return []
    curves = board.curves
    recent = curves["speed"].values[-1:] or [state.samples_per_second]
    rows = [
        ("loss", f"{state.loss:.4f}", "loss"),
        ("PSNR", f"{state.psnr:.1f} dB", "psnr"),
        *([("interval ±", f"{state.half_width:.3f}", "interval")] if state.half_width else []),
        ("occupied", f"{state.occupied:.1%}", "occupied"),
        ("samples/s", quantity(recent[0]), "speed"),
        ("rays that hit", f"{state.hit:.0%}", ""),
    ]
    columns = min(width - 23, CURVE_COLUMNS)
    lines = [
        [Segment(f"{label:<13} ", DIM), Segment(f"{number:<9}", BOLD), Segment(sparkline(curves[key].values, columns) if key else "", CYAN)]
        for label, number, key in rows
    ]
    if state.skipped:
        lines.append([Segment(f"{'skipped':<13} ", DIM), Segment(f"{state.skipped} steps, not finite", YELLOW)])
    if board.saved is not None:
        lines.append([Segment(f"{'checkpoint':<13} ", DIM), Segment(f"{duration(now - board.saved)} ago", PLAIN)])
    if board.preview is not None:
        lines.append([Segment(f"{'view':<13} ", DIM), Segment(board.preview.view, PLAIN)])
    return lines


def _segments(cells: Picture) -> list[Line]:
    """One segment for each run of equal cells."""
    lines = []
    for row in cells.tolist():
        line: list[tuple[str, Any]] = []
        for cell in row:
            if line and line[-1][1] == cell:
                line[-1] = (line[-1][0] + "▀", cell)
            else:
                line.append(("▀", cell))
        lines.append([Segment(text, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))) for text, (upper, lower) in line])
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


@contextlib.contextmanager
def _on_suspend(stage: Stage) -> Iterator[None]:
    """Ctrl-Z gives the terminal back until the job goes on in front."""
    if not hasattr(signal, "SIGTSTP"):
        yield
        return

    def suspend(_signal: int, _frame: FrameType | None) -> None:
        stage.give()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, suspend)
        stage.take()

    try:
        before = signal.signal(signal.SIGTSTP, suspend)
    except ValueError:  # not the main thread: leave it alone
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
