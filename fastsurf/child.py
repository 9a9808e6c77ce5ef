"""Python in a process of its own: what crashes there, or is killed for its memory, is one line here."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import FastsurfError

PATIENCE = 5.0  # seconds to come to an end
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
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if on_line else file, stderr=file, env=_environment()
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
        raise _failed(what, process.returncode, log)
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"wall_seconds": time.monotonic() - start, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": peak}


@contextlib.contextmanager
def python_at_work(words: Sequence[str], job: str, log: Path, what: str, **variables: str) -> Iterator[Iterator[str]]:
    """`python WORDS...` while the `with` lasts; yields the lines of its stdout, which end in a ChildError.

    Its stdin is the line `job`; it ends when the work is no longer wanted or this process is gone, and PATIENCE later the other too.

    Args:
        log: a file that what it says on stderr is added to.
        what: its name in messages.
        variables: of its environment.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=_environment() | variables,
            encoding="utf-8",
        )  # fmt: skip
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def lines() -> Iterator[str]:
        yield from stdout
        raise _failed(what, process.wait(), log)

    try:
        with contextlib.suppress(BrokenPipeError):
            stdin.write(job + "\n")
            stdin.flush()
        yield lines()
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        stdout.close()


def _environment() -> dict[str, str]:
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}  # nor the one in the folder where this runs


def _failed(what: str, code: int, log: Path) -> ChildError:
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ended = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return ChildError(f"{what} ended with {ended}: {said[-1].strip() if said else 'it said nothing'} (all of it: {log})")
