"""A process of its own: what it says, what it costs, how it fails, and that it never outlives the call."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fastsurf
from fastsurf.child import ChildError, run_python

PACKAGE = str(Path(fastsurf.__file__).parents[1])


def test_a_child_that_is_killed_says_so(tmp_path) -> None:
    with pytest.raises(ChildError, match=r"it ended with SIGKILL: half a word"):
        run_python(["-c", "import os; print('half a word', flush=True); os.kill(os.getpid(), 9)"], tmp_path / "log", "it")
    with pytest.raises(ChildError, match="exit code 3: it said nothing"):
        run_python(["-c", "raise SystemExit(3)"], tmp_path / "log", "it")


def test_lines_come_as_they_are_said_and_the_rest_goes_to_the_log(tmp_path) -> None:
    program = "import sys, time\nfor k in range(3): print(k, flush=True); time.sleep(0.3)\nprint('besides', file=sys.stderr)"
    came: list[tuple[str, float]] = []
    used = run_python(["-c", program], tmp_path / "log", "it", lambda line: came.append((line, time.monotonic())))
    assert [line for line, _ in came] == ["0\n", "1\n", "2\n"] and came[2][1] - came[0][1] > 0.4
    assert (tmp_path / "log").read_text() == "besides\n"
    assert used["wall_seconds"] > 0.9 > used["cpu_seconds"] > 0 and used["peak_mb"] > 1
    with pytest.raises(ChildError, match="exit code 1: ZeroDivisionError"):
        run_python(["-c", "print(1, flush=True); 1 / 0"], tmp_path / "log", "it", came.append)


@pytest.mark.parametrize("following", [True, False])
def test_what_interrupts_us_ends_the_child(tmp_path, following) -> None:
    program = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_python(["-c", program], tmp_path / "log", "it", (lambda line: None) if following else None)
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


ATTENDED = """\
import runpy, signal, sys, time
import fastsurf.cli

def main():
    try:
        print("at work", repr(sys.stdin.read()), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        return 7

fastsurf.cli.main = main
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
runpy.run_module("fastsurf.attended", run_name="__main__")
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals can be blocked on POSIX alone")
@pytest.mark.parametrize("order, code", [(b"\n", 7), (b"", 130)], ids=["a byte", "the end"])
def test_what_is_attended_obeys_its_stdin_even_where_ctrl_c_was_blocked(order, code) -> None:
    words, variables = [sys.executable, "-c", ATTENDED], os.environ | {"PYTHONPATH": PACKAGE}
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"at work ''\n"
    if order:
        process.stdin.write(order)
        process.stdin.flush()
    else:
        process.stdin.close()
    assert process.wait(30) == code
    process.stdout.close()
    process.stdin.close()
