"""Single keys of a terminal, read as they are typed, while a live screen is on it."""

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

LOOK = 0.2  # seconds between two looks at whether the work still wants keys

Keys = Mapping[str, tuple[str, Callable[[], None]]]  # by character: a word for the screen, and what is done


def can_read() -> bool:
    """Whether stdin is a terminal, and ours: not that of a job in the background."""
    try:
        return sys.stdin.isatty() and (sys.platform == "win32" or os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp())
    except (OSError, ValueError, AttributeError):
        return False


if sys.platform == "win32":
    import msvcrt

    @contextlib.contextmanager
    def silent() -> Iterator[None]:
        """Windows echoes nothing that is read with msvcrt."""
        yield

    def _typed(seconds: float) -> str:
        import time

        time.sleep(seconds)
        return msvcrt.getwch() if msvcrt.kbhit() else ""
else:
    import termios

    @contextlib.contextmanager
    def silent() -> Iterator[None]:
        """Keys come one by one and are not echoed into the picture (`^C` neither); the terminal's mode is put back at the end."""
        if not can_read():
            yield
            return
        tty = sys.stdin.fileno()
        try:
            before = termios.tcgetattr(tty)
            mode = termios.tcgetattr(tty)
            mode[3] &= ~(termios.ECHO | termios.ICANON)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(tty, termios.TCSADRAIN, mode)
        except termios.error:
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(tty, termios.TCSADRAIN, before)

    def _typed(seconds: float) -> str:
        tty = sys.stdin.fileno()
        if not select.select([tty], [], [], seconds)[0] or not can_read():
            return ""
        return os.read(tty, 1).decode("ascii", "ignore")


@contextlib.contextmanager
def watched(keys: Keys, wanted: Callable[[], bool]) -> Iterator[None]:
    """Do what belongs to each key that is typed while `wanted()`, in a thread of its own; others do nothing. Within `silent`."""
    if not keys or not can_read():
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            while not ended.is_set():
                _, do = keys.get(_typed(LOOK).lower(), ("", None))
                if do is not None and wanted():
                    do()
                elif not can_read():
                    ended.wait(LOOK)  # in the background

    thread = threading.Thread(target=watch, daemon=True, name="keys")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5 * LOOK)
