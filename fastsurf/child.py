"""Python in a process of its own: what crashes there, or is killed for its memory, is one line here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import FastsurfError

HOME = Path(__file__).parent.parent  # of the package, so that the child runs the same one


class ChildError(FastsurfError):
    """The process failed, and the last line that it said."""


def run_python(words: Sequence[str], log: Path, what: str, on_line: Callable[[str], None] | None = None) -> dict[str, float]:
    """Run `python WORDS...` to its end; what interrupts this process ends the other at once.

    Args:
        log: the file for everything that it says; with `on_line`, for what it says on stderr.
        what: its name in messages.
        on_line: called with each line of its stdout as it comes.

    Returns:
        `wall_seconds`, `cpu_seconds`, `peak_mb`.

    Raises:
        ChildError: it ended with another exit code than 0.
    """
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if on_line else file, stderr=file, env=environment
        )
        try:
            if on_line and process.stdout:
                for line in process.stdout:
                    on_line(line.decode(errors="replace"))
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout:
                process.stdout.close()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        ended = f"exit code {process.returncode}" if process.returncode > 0 else signal.Signals(-process.returncode).name
        raise ChildError(f"{what} ended with {ended}: {said[-1].strip() if said else 'it said nothing'} (all of it: {log})")
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"wall_seconds": time.monotonic() - start, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": peak}
