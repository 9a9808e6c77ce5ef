"""Curves and pictures for TensorBoard."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..hooks import Event, Preview, TrainState

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

NUMBERS = ("loss", "psnr", "half_width", "occupied", "hit", "samples_per_second")


class TensorBoard:
    """A hook that writes an event file into `folder`: the numbers of TrainState and its parts of the loss by step, previews as pictures.

    `every` seconds lie between two steps written, and the last one is never lost. What an earlier run of the folder wrote from this one's
    first step on is dropped by TensorBoard.

    Raises:
        ImportError: TensorBoard isn't installed.
    """

    def __init__(self, folder: Path, every: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        import tensorboard  # noqa: F401  # before the training, not in it

        self._folder, self._every, self._clock = folder, every, clock
        self._writer: SummaryWriter | None = None
        self._last, self._step = -math.inf, 0
        self._waiting: TrainState | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainState):
            self._step, self._waiting = event.step, event
            if self._clock() - self._last >= self._every:
                self._last = self._clock()
                self._write_waiting()
        elif isinstance(event, Preview) and self._writer is not None:
            for name, picture in (("colour", event.rgb), ("normal", event.normal)):
                self._writer.add_image(f"preview/{name}", picture, self._step, dataformats="HWC")

    def close(self) -> None:
        """Write the last step and close the file."""
        self._write_waiting()
        if self._writer is not None:
            self._writer.close()

    def _write_waiting(self) -> None:
        state, self._waiting = self._waiting, None
        if state is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=state.step, flush_secs=5)
        for name in NUMBERS:
            self._writer.add_scalar(f"train/{name}", getattr(state, name), state.step)
        for name, value in state.losses.items():
            self._writer.add_scalar(f"loss/{name}", value, state.step)
