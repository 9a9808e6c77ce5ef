"""Single keys of a terminal, read as they are typed, while a live screen is on it.

A shell takes the terminal from a job that it stops and lends it to the one in front. Only of the job in front are keys read and is the
terminal's mode set; the kernel sees to it where the two change places in between: reading is an error then, setting stops the job.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LOOK = 0.2  # seconds between two looks at whether the work still wants keys, and whose the terminal is

Keys = Mapping[str, tuple[str, Callable[[], None]]]  # by character: a word for the screen, and what is done


def can_read() -> bool:
    """Whether stdin is a terminal, and ours: not that of a job in the background."""
    try:
        return sys.stdin.isatty() and (sys.platform == "win32" or os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp())
    except (OSError, ValueError, AttributeError):
        return False


if sys.platform == "win32":
    import msvcrt

    class Silence:
        """Windows echoes nothing that is read with msvcrt."""

        def begin(self) -> None: ...

        def end(self) -> None: ...

    @contextlib.contextmanager
    def _typing() -> Iterator[Callable[[], str]]:
        def typed() -> str:
            time.sleep(LOOK)
            return msvcrt.getwch() if msvcrt.kbhit() else ""

        yield typed
else:
    import termios

    class Silence:
        """A mode of the terminal: keys come one by one and are not echoed into the picture (`^C` neither)."""

        def __init__(self) -> None:
            self._before: list[Any] | None = None

        def begin(self) -> None:
            """Set it, unless it is, or the terminal is another job's."""
            with contextlib.suppress(termios.error):  # the terminal is gone
                if not can_read():
                    return
                tty = sys.stdin.fileno()
                mode = termios.tcgetattr(tty)
                if not mode[3] & (termios.ECHO | termios.ICANON):
                    return
                self._before = self._before or termios.tcgetattr(tty)
                mode[3] &= ~(termios.ECHO | termios.ICANON)
                mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
                termios.tcsetattr(tty, termios.TCSADRAIN, mode)

        def end(self) -> None:
            """Put back what was, unless the terminal is another job's, and in its mode."""
            with contextlib.suppress(termios.error):
                if self._before is not None and can_read():
                    termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
                    self._before = None

    @contextlib.contextmanager
    def _typing() -> Iterator[Callable[[], str]]:
        """A function that waits up to LOOK for a key; '' if there is none.

        It never waits longer, whoever else reads what it saw coming: the terminal is opened anew for it, since stdin is the shell's, too.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})  # of this thread: to read behind another job is an error
        tty = os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)

        def typed() -> str:
            if not select.select([tty], [], [], LOOK)[0]:
                return ""
            try:
                return os.read(tty, 1).decode("ascii", "ignore")
            except BlockingIOError:
                return ""
            except OSError:
                if can_read():
                    raise
                return ""

        try:
            yield typed
        finally:
            os.close(tty)


@contextlib.contextmanager
def watched(keys: Keys, wanted: Callable[[], bool], look: Callable[[], None]) -> Iterator[None]:
    """Do what belongs to each key that is typed while `wanted()`, in a thread of its own; others do nothing.

    Args:
        look: called again and again: the terminal may have become another job's, or ours.
    """
    ended = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:  # the terminal is gone
            typed = stack.enter_context(_typing()) if keys else lambda: ""
            while not ended.is_set():
                look()
                if not keys or not can_read():
                    ended.wait(LOOK)
                    continue
                _, do = keys.get(typed().lower(), ("", None))
                if do is not None and wanted():
                    do()

    thread = threading.Thread(target=watch, daemon=True, name="keys")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5 * LOOK)
