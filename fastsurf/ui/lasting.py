"""A stream that may go away: a terminal that is closed, a pipe that nobody reads, a disk that is full."""

import contextlib
import io
import os
from typing import Any, TextIO, cast


def lasting(stream: TextIO) -> TextIO:
    """A `Lasting` of it."""
    return cast(TextIO, stream if isinstance(stream, Lasting) else Lasting(stream))


class Lasting(io.TextIOBase):
    """`stream`, whose errors end what is written to it and not the work that is told of.

    What can't be written is dropped, and so is all that follows: its descriptor then leads nowhere, for whoever else writes there, and for
    the interpreter, which flushes it at the end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._lead_nowhere()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lead_nowhere()

    def close(self) -> None:
        """Nothing: the stream is whoever's opened it."""

    def _lead_nowhere(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()
