"""Keys of the live screen, typed on a terminal of the test's own."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from test_cli import PACKAGE, TINY
from test_ui import board_after, fake_step, text

from fastsurf.hooks import Control, PhaseStarted
from fastsurf.meshio import read_mesh
from fastsurf.ui.screen import _keys


@contextlib.contextmanager
def on_a_terminal(words):
    """A process on 80 x 24; `wait_for(text)` gives what it wrote up to there since the last call, `type_in(keys)` types."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))

    def take():
        import fcntl

        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    environ = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": PACKAGE, "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True, preexec_fn=take
    )
    seen = b""

    def wait_for(wanted):
        nonlocal seen
        deadline = time.monotonic() + 60
        while wanted.encode() not in seen:
            assert time.monotonic() < deadline and (process.poll() is None or select.select([ours], [], [], 0)[0]), (wanted, seen[-2000:])
            if select.select([ours], [], [], 0.05)[0]:
                seen += os.read(ours, 1 << 16)
        before, found, seen = seen.partition(wanted.encode())
        return (before + found).decode(errors="ignore")

    try:
        yield process, theirs, wait_for, lambda keys: os.write(ours, keys.encode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def mode(terminal):
    return [part for part in termios.tcgetattr(terminal)[3:4]]


def test_keys_pause_save_mesh_look_and_finish(tiny_folder, tmp_path):
    run = tmp_path / "r"
    words = ["-m", "fastsurf", tiny_folder, "--run", run, *TINY, "--steps", "100000", "--set", "train.preview_every=1e9"]
    with on_a_terminal(words) as (process, terminal, wait_for, type_in):
        before = mode(terminal)
        wait_for("p pause · s save · m mesh · v view · q finish early")
        wait_for("rays that hit")
        assert not mode(terminal)[0] & (termios.ECHO | termios.ICANON)
        type_in("p")
        wait_for("p go on · s save")
        paused = re.findall(r"step ([\d,]+)  paused, and so is the clock", wait_for("paused, and so is the clock"))
        type_in("x\x1bs")  # keys that mean nothing, and save
        wait_for("checkpoint")
        assert (run / "checkpoint.safetensors").exists()
        type_in("m")
        deadline = time.monotonic() + 60
        while not (run / "preview.ply").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(read_mesh(run / "preview.ply").faces) > 0
        still = re.findall(r"step ([\d,]+)  paused", wait_for("paused, and so is the clock"))
        assert set(paused) == set(still) and len(set(still)) == 1
        type_in("p")
        wait_for("p pause")
        type_in("q")
        wait_for("--resume")
        assert process.wait(60) == 130 and (run / "mesh.ply").exists() and mode(terminal) == before


def test_the_demo_has_the_same_keys(tiny_folder, tmp_path):
    program = "import shutil, sys, fastsurf.demo\n" \
        f"fastsurf.demo.make_scene = lambda out, on_progress: shutil.copytree({str(tiny_folder)!r}, out)\n" \
        "fastsurf.demo.score_mesh = lambda *_: {'f_score': 0.5}\n" \
        "from fastsurf.cli import main\nsys.exit(main())"
    words = ["-c", program, "demo", "-o", tmp_path / "d", *TINY, "--steps", "100000"]
    with on_a_terminal(words) as (process, terminal, wait_for, type_in):
        before = mode(terminal)
        wait_for("p pause · s save · m mesh · v view · q finish early")
        type_in("p")
        wait_for("paused, and so is the clock")
        type_in("q")
        wait_for("preview.png")
        assert process.wait(60) == 130 and mode(terminal) == before
    assert json.loads((tmp_path / "d" / "score.json").read_text())["stopped"] is True and (tmp_path / "d" / "mesh.ply").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGTSTP])
def test_the_terminal_is_given_back_however_it_ends(tiny_folder, tmp_path, number):
    words = ["-m", "fastsurf", tiny_folder, "--run", tmp_path / "r", *TINY, "--steps", "100000"]
    with on_a_terminal(words) as (process, terminal, wait_for, _):
        before = mode(terminal)
        wait_for("q finish early")
        os.kill(process.pid, number)
        if number == signal.SIGTSTP:
            wait_for("\x1b[?1049l")  # a session leader isn't stopped, and goes on at once
            wait_for("q finish early")
            assert not mode(terminal)[0] & termios.ECHO
            os.kill(process.pid, signal.SIGTERM)
        wait_for("--resume")
        assert process.wait(60) == 130 and mode(terminal) == before


SHELL = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
mode, child = termios.tcgetattr(0), os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
print(f"job {child}.", flush=True)
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        print("the end.", flush=True)
        sys.exit(os.waitstatus_to_exitcode(status))
    left = termios.tcgetattr(0)[3] == mode[3]
    termios.tcsetattr(0, termios.TCSADRAIN, mode)
    print(f"stopped by {os.WSTOPSIG(status)}, mode put back: {left}, go on?", flush=True)
    said = sys.stdin.readline()
    if said == "bg\\n":
        print("behind.", flush=True)
        os.kill(child, signal.SIGCONT)
        while (said := sys.stdin.readline()) == "and?\\n":
            print("here.", flush=True)
        if said == "fg\\n":
            print("in front.", flush=True)
            os.tcsetpgrp(0, child)
    else:
        os.tcsetpgrp(0, child)
        os.kill(child, signal.SIGCONT)
"""  # what a shell does of a job: it stops, and goes on behind or in front; of `fg` one that is already going on hears nothing


def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_was_stopped_goes_on_behind_and_has_its_keys_again_in_front(tiny_folder, tmp_path):
    """The shell has its own terminal's mode meanwhile, whatever is typed, and at the end."""
    log = tmp_path / "r" / "log.jsonl"
    words = ["-c", SHELL, "-m", "fastsurf", tiny_folder, "--run", tmp_path / "r", *TINY, "--steps", "100000"]
    with on_a_terminal(words) as (process, terminal, wait_for, type_in):
        before = mode(terminal)
        job = int(re.search(r"job (\d+)\.", wait_for("q finish early"))[1])
        for how, behind in [("ctrl-z", False), ("ctrl-z", True), ("stop", False), ("stop", True)]:
            if how == "stop":
                os.kill(job, signal.SIGSTOP)
            else:
                type_in("\x1a")
            said = wait_for("go on?")
            assert f"mode put back: {how != 'stop'}" in said and mode(terminal) == before
            if behind:
                type_in("bg\n")
                wait_for("behind.")
                if how == "stop":
                    wait_for("\x1b[?1049l")  # nobody could do that before
                had = log.stat().st_size
                until(lambda had=had: log.stat().st_size > had)
                for _ in range(5):
                    type_in("and?\n")
                    wait_for("here.")
                assert mode(terminal) == before, "it stays the shell's"
            type_in("fg\n")
            if behind:
                assert "╭" not in wait_for("in front."), "nothing was drawn over it"
            until(lambda: mode(terminal) != before)
            wait_for("q finish early")
            type_in("p")
            wait_for("p go on")
            type_in("p")
            wait_for("p pause")
        type_in("q")
        wait_for("--resume")
        assert process.wait(60) == 130 and mode(terminal) == before


def test_a_job_that_ends_behind_another_leaves_the_terminal_alone(tiny_folder, tmp_path):
    """Whoever sets a terminal's mode from behind is stopped."""
    words = ["-c", SHELL, "-m", "fastsurf", tiny_folder, "--run", tmp_path / "r", *TINY, "--steps", "100000"]
    with on_a_terminal(words) as (process, terminal, wait_for, type_in):
        job = int(re.search(r"job (\d+)\.", wait_for("q finish early"))[1])
        os.kill(job, signal.SIGSTOP)
        wait_for("go on?")
        before = mode(terminal)
        type_in("bg\n")
        wait_for("behind.")
        type_in("\n")
        os.kill(job, signal.SIGTERM)
        assert "stopped by" not in wait_for("the end.") and process.wait(60) == 130 and mode(terminal) == before


def test_a_key_that_another_has_read_is_not_waited_for(tmp_path):
    """As when the shell reads the line that brings the job to the front: then nothing is left to read, and the mode isn't set yet."""
    program = "from fastsurf.ui import keys\n" \
        "keys.select.select = lambda *_: ([0], [], [])\n" \
        "with keys._typing() as typed:\n    print([typed() for _ in range(3)], 'done', flush=True)"
    with on_a_terminal(["-c", program]) as (process, _, wait_for, __):
        assert "['', '', '']" in wait_for("done") and process.wait(60) == 0


def test_the_bottom_line_names_the_keys_in_eighty_columns():
    finished = []
    board = board_after([PhaseStarted("train"), fake_step(3, 0.1)])
    board.control = Control(lambda: finished.append(True))
    board.keys = _keys(board.control)
    assert text(board)[-1].endswith("─ p pause · s save · m mesh · v view · q finish early ─╯") and len(text(board)[-1]) == 80
    for key in "psvmq":
        board.keys[key][1]()
    assert board.control.paused and list(board.control.wishes()) == ["save", "view", "mesh"] and finished == [True]
    assert "p go on · s save" in text(board)[-1] and "step 3  paused, and so is the clock" in text(board)[2]
    assert "p pause" not in text(board_after([PhaseStarted("read")]))[-1]
