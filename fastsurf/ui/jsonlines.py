"""Events as JSON lines, one object a line: the run's log.jsonl and `--json FILE`.

Each has `event` and `time` (seconds since 1970), and what hooks.py says of that event: a `step` carries all of TrainState, a `progress`
all of MeshProgress. Numbers that are not finite become null.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TextIO

from ..hooks import Event, MeshProgress, Note, PhaseDone, PhaseStarted, Preview, Saved, SceneState, TrainState

Told = PhaseStarted | PhaseDone | TrainState | MeshProgress | Note | Saved | SceneState
WAITING = 1 << 20  # bytes
NAMES: dict[type[Told], str] = {
    PhaseStarted: "phase", PhaseDone: "phase_done", TrainState: "step", MeshProgress: "progress", Note: "note", Saved: "saved",
    SceneState: "scene",
}  # fmt: skip
KINDS = {name: kind for kind, name in NAMES.items()}


class JsonLines:
    """A hook that writes events as they come; `every` seconds lie between two steps written, and the last one is never lost; as many
    between two lines of progress in one phase.

    Each line is flushed, so that the file can be followed and survives a kill. A path is opened when the first phase is done or something
    is saved: a scene that can't be read leaves no file. While a disk is full, lines wait (the last WAITING bytes of them), and `trouble`
    says so.
    """

    def __init__(self, to: Path | TextIO, append: bool = False, every: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._to, self._append = to, append
        self._file: IO[bytes] | None = None
        self._unwritten = b""
        self.trouble = ""
        self._every, self._clock = every, clock
        self._last, self._told = -math.inf, -math.inf
        self._waiting: TrainState | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Preview):
            return
        if self._file is None and isinstance(self._to, Path) and isinstance(event, PhaseDone | TrainState | SceneState | Saved):
            self._file = _open(self._to, self._append)
        now = self._clock()
        if isinstance(event, PhaseStarted):
            self._told = -math.inf
        if isinstance(event, MeshProgress):
            if now - self._told < self._every:
                return
            self._told = now
        if isinstance(event, TrainState):
            if now - self._last < self._every:
                self._waiting = event
                return
            self._last, self._waiting = now, None
        else:
            self._write_waiting()
        self._write(event)

    def close(self) -> None:
        """Write the last step, and close the file if it was opened here."""
        self._write_waiting()
        if self._file is not None:
            self._file.close()

    def _write_waiting(self) -> None:
        if self._waiting is not None:
            self._write(self._waiting)
            self._waiting = None

    def _write(self, event: Told) -> None:
        record = {"event": NAMES[type(event)], "time": time.time()} | dataclasses.asdict(event)
        line = json.dumps(finite(record), ensure_ascii=False) + "\n"
        if not isinstance(self._to, Path):
            self._to.write(line)
            self._to.flush()
            return
        self._unwritten += line.encode(errors="replace")
        try:
            while self._file is not None and self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self.trouble = ""
        except OSError as e:
            self.trouble = f"{self._to} can't be written ({e.strerror}): the work goes on without it"
            if len(self._unwritten) > WAITING:  # from the next line on that fits
                self._unwritten = b"\n" + self._unwritten[-WAITING:].partition(b"\n")[2]


def _open(path: Path, append: bool) -> IO[bytes]:
    """Unbuffered: what could not be written is known and can be tried again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = append and torn(path)
    file = path.open("ab" if append else "wb", buffering=0)
    if cut:
        file.write(b"\n")
    return file


def torn(path: Path) -> bool:
    """Whether a file of lines ends within one, where a kill left it."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def finite(value: Any) -> Any:
    """`value` as JSON can say it: numbers that are not finite become null, paths text."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.13g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def read_event(line: str) -> Told | None:
    """The event that became this line; None where it is no such line. Numbers that became null are NaN."""
    try:
        tree = json.loads(line)
        kind = KINDS[tree.pop("event")]
        del tree["time"]
        if kind is TrainState:
            tree = _with_nan(tree)
        return kind(**tree | ({"path": Path(tree["path"])} if kind is Saved else {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _with_nan(tree: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: math.nan if value is None else value for key, value in tree.items()}
    return {key: _with_nan(value) if isinstance(value, dict) else value for key, value in numbers.items()}
