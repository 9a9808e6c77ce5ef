"""Events as JSON lines, one object a line: the run's log.jsonl and `--json FILE`.

Each has `event` and `time` (seconds since 1970). A `step` carries step, progress, seconds, seconds_left, loss, psnr, losses, half_width,
occupied, hit and samples_per_second; numbers that are not finite become null.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..hooks import Event, MeshProgress, Note, PhaseDone, PhaseStarted, Preview, Saved, TrainState

NAMES = {PhaseStarted: "phase", PhaseDone: "phase_done", TrainState: "step", Note: "note", Saved: "saved"}


class JsonLines:
    """A hook that writes events as they come; `every` seconds lie between two steps written, and the last one is never lost.

    Each line is flushed, so that the file can be followed and survives a kill.
    """

    def __init__(self, to: Path | IO[str], append: bool = False, every: float = 1.0, clock: Callable[[], float] = time.time) -> None:
        self._own = isinstance(to, Path)
        self._file: IO[str] = _open(to, append) if isinstance(to, Path) else to
        self._every, self._clock = every, clock
        self._last = -math.inf
        self._waiting: TrainState | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Preview | MeshProgress):
            return
        now = self._clock()
        if isinstance(event, TrainState):
            if now - self._last < self._every:
                self._waiting = event
                return
            self._last, self._waiting = now, None
        else:
            self._write_waiting(now)
        self._write(event, now)

    def close(self) -> None:
        """Write the last step, and close the file if it was opened here."""
        self._write_waiting(self._clock())
        if self._own:
            self._file.close()

    def _write_waiting(self, now: float) -> None:
        if self._waiting is not None:
            self._write(self._waiting, now)
            self._waiting = None

    def _write(self, event: PhaseStarted | PhaseDone | TrainState | Note | Saved, now: float) -> None:
        record = {"event": NAMES[type(event)], "time": round(now, 3)} | dataclasses.asdict(event)
        self._file.write(json.dumps(_plain(record), ensure_ascii=False) + "\n")
        self._file.flush()


def _open(path: Path, append: bool) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+" if append else "w", encoding="utf-8")
    if append and (end := file.tell()):
        with path.open("rb") as check:
            check.seek(end - 1)
            if check.read(1) != b"\n":  # a line cut by a kill
                file.write("\n")
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
