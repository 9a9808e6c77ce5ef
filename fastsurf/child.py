"""Python in a process of its own: what crashes there, or is killed for its memory, is one line here."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FastsurfError

if TYPE_CHECKING:
    import resource

PATIENCE = 5.0  # seconds to come to an end
HOME = Path(__file__).parent.parent  # of the package, so that the child runs the same one


class ChildError(FastsurfError):
    """The process failed, and the last line that it said; `code` is what it exited with, or minus the signal."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


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
    return _cost(used, start)


class Attended:
    """A fastsurf command in a process of its own (attended.py). Any thread may ask it to finish or end it; it never outlives this process.

    Args:
        words: the command line, from the verb on.
        log: the file for what it says on stderr.
        what: its name in messages.
        variables: of its environment.
    """

    def __init__(self, words: Sequence[str], log: Path, what: str, variables: Mapping[str, str]) -> None:
        self._log, self._what, self._start = log, what, time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fastsurf.attended", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                env={**_environment(), **variables}, start_new_session=True,
            )  # fmt: skip # in a session of its own, a Ctrl-C on the terminal reaches it only from here

    def run(self, on_line: Callable[[str], None]) -> dict[str, float]:
        """Follow it to its end: `wall_seconds`, `cpu_seconds`, `peak_mb`.

        Args:
            on_line: called with each line of its stdout as it comes.

        Raises:
            ChildError: it ended with another exit code than 0.
        """
        stdout = self._process.stdout
        assert stdout is not None
        try:
            for line in stdout:
                on_line(line.decode(errors="replace"))
            _, status, used = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self.end()
            stdout.close()
        if self._process.returncode:
            raise _failed(self._what, self._process.returncode, self._log)
        return _cost(used, self._start)

    def interrupt(self) -> None:
        """What Ctrl-C is to the command; nothing if it is over."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # gone, or closed
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """End it at once."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


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


def _cost(used: "resource.struct_rusage", start: float) -> dict[str, float]:
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"wall_seconds": time.monotonic() - start, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": peak}


def _environment() -> dict[str, str]:
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}  # nor the one in the folder where this runs


def _failed(what: str, code: int, log: Path) -> ChildError:
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ended = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return ChildError(f"{what} ended with {ended}: {said[-1].strip() if said else 'it said nothing'} (all of it: {log})", code)
