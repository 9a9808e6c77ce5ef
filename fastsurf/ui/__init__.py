"""What a person sees while fastsurf works: hooks that show events. Nothing here knows the method."""

import os
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, TextIO

from ..hooks import Control, Event

SMALLEST = (80, 20)  # columns and rows that the live screen needs


class Display(Protocol):
    """A hook that is open for the length of a `with`; leaving it gives the terminal back."""

    def __call__(self, event: Event) -> None: ...

    def __enter__(self) -> "Display": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_display(
    stream: TextIO, title: str, phases: tuple[str, ...], stopping: Callable[[], bool], quiet: bool = False, control: Control | None = None
) -> Display:
    """The live screen where the terminal can carry it, else plain lines, else (`quiet`) nothing.

    Args:
        title: what is worked on.
        phases: names of the phases to come, in order.
        stopping: whether the user has asked to finish early.
        control: of the training, for the live screen's keys.
    """
    from .plain import Plain, Silent

    if quiet:
        return Silent()
    if why_plain(stream, os.environ):
        return Plain(stream, stopping=stopping)
    from .screen import Screen

    return Screen(stream, title, phases, stopping, control)


def why_plain(stream: TextIO, environ: Mapping[str, str]) -> str:
    """Why the live screen can't be used on `stream`, or '' if it can."""
    if not stream.isatty():
        return "no terminal"
    if environ.get("TERM", "").lower() in ("", "dumb", "unknown") and sys.platform != "win32":
        return "TERM"
    if environ.get("NO_COLOR"):
        return "NO_COLOR"
    if "utf" not in (stream.encoding or "").lower():
        return "encoding"
    if not _in_foreground(stream):
        return "in the background"
    columns, rows = os.get_terminal_size(stream.fileno())
    return "" if columns >= SMALLEST[0] and rows >= SMALLEST[1] else "small"


def _in_foreground(stream: TextIO) -> bool:
    """Whether the terminal is ours at the moment: not that of another job, nor of another session."""
    try:
        return not hasattr(os, "tcgetpgrp") or os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:
        return False
