"""Events in, text out: what each display shows, and that the terminal is given back."""

import io
import json
import math
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fake_events import fake_events, fake_preview, fake_step

import fastsurf
from fastsurf.hooks import MeshProgress, Note, Pace, PhaseDone, PhaseStarted, Preview, Saved, SceneState
from fastsurf.ui import why_plain
from fastsurf.ui.jsonlines import JsonLines, read_event
from fastsurf.ui.pictures import Curve, half_blocks, sparkline
from fastsurf.ui.plain import Plain, closing_lines, duration, quantity, step_line
from fastsurf.ui.report import ARROWS, camera_map, report_lines
from fastsurf.ui.screen import Board, Cells, Phase, Strays, draw

PACKAGE = str(Path(fastsurf.__file__).parents[1])


class Clock:
    """A clock that the test moves."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def board_after(events, clock=None):
    board = Board("fox", {name: Phase() for name in ("read", "train", "mesh")}, clock or Clock())
    for event in events:
        board(event)
    return board


def text(board, width=80, height=24, now=100.0, stopping=False, pictures=True):
    return ["".join(s.text for s in line) for line in draw(board, Cells(), width, height, now, stopping, pictures)]


def training_board():
    events = list(fake_events(100))
    return board_after(events[: events.index(next(e for e in events if isinstance(e, PhaseDone) and e.name == "train"))])


@pytest.mark.parametrize("width, height", [(80, 20), (80, 24), (110, 32), (200, 60)])
def test_the_screen_fills_its_width_and_stays_within_its_height(width, height):
    lines = text(training_board(), width, height)
    assert {len(line) for line in lines} == {width} and len(lines) < height
    assert lines[0].startswith("╭─ fastsurf · fox ") and lines[0].endswith(" native: AVX2, 2 threads ─╮")
    assert lines[-1].startswith("╰") and "Ctrl-C: finish early" in lines[-1]


def test_an_interval_is_told_only_by_methods_that_have_one():
    board = training_board()
    board.state = replace(board.state, half_width=0.0)
    seen = "\n".join(text(board, 110, 32, now=107.0))
    assert "interval" not in seen and re.search("loss.*PSNR.*occupied", seen, re.DOTALL)
    assert "interval" not in step_line(board.state) and "dB  occupied" in step_line(board.state)


def test_the_screen_shows_phases_numbers_curves_and_pictures():
    board = training_board()
    seen = "\n".join(text(board, 110, 32, now=107.0))
    assert "✓ read 0:02 ── ▶ train 0:07 ── ○ mesh" in seen
    assert "100%  step 100  0:00 left" in seen
    assert re.search(rf"loss +{board.state.loss:.4f} +[▁-█]{{10,}}", seen) and re.search(r"PSNR +\d\d\.\d dB +[▁-█]{10,}", seen)
    for row in ("interval ± +0.015", "occupied +2.5%", "rays that hit +100%", "checkpoint +0:07 ago", "view +0031.jpg"):
        assert re.search(row, seen), row
    assert "intrinsics were for 1600x1200, rescaled to 800x600" in seen
    assert seen.count("▀") > 2 * 15 * 15
    assert "▀" not in "\n".join(text(board, 110, 32, pictures=False))


def test_the_screen_follows_one_run_after_another():
    """Phases that are runs: the bar counts steps whatever their name, curves begin again, and Ctrl-C promises no mesh."""
    board = Board("compare fox", {name: Phase() for name in ("unisurf", "nerf")}, Clock())
    board(PhaseStarted("unisurf"))
    for step in (1, 20, 40):
        board(fake_step(step, step / 40))
    assert "step 40" in "\n".join(text(board)) and "Ctrl-C: stop ─" in text(board)[-1]
    board(MeshProgress(0.0, "mesh"))
    assert "  0%  mesh" in text(board)[2] and "step" not in text(board)[2]
    board(PhaseDone("unisurf", 60.0))
    board(PhaseStarted("nerf"))
    assert "mesh" not in "\n".join(text(board))
    board(fake_step(1, 0.1))
    assert len(board.curves["loss"].values) == 1 and "✓ unisurf 1:00 ── ▶ nerf" in text(board)[1]


MANY = [
    SceneState("fox", "done", 1.0, 75.0, None, "9,120 faces"),
    SceneState("a-bridge-in-the-old-town-of-a-city", "train", 0.5, 60.0, 59.6, "step 300"),
    SceneState("horse", "failed", 1.0, 3.0, None, "no cameras"), SceneState("cat", "waiting"), SceneState("dog", "mesh", 0.0, 80.0),
    SceneState("owl", "kept", 1.0),
]  # fmt: skip


@pytest.mark.parametrize("width, height", [(80, 20), (120, 40)])
def test_the_screen_has_a_line_for_each_of_many_scenes(width, height):
    board = board_after([SceneState(s.name, "waiting") for s in MANY] + MANY)
    lines = text(board, width, height)
    assert {len(line) for line in lines} == {width} and len(lines) < height
    assert "2 at work   1 waiting   1 done   1 kept   1 failed" in lines[1] and "  69%" in lines[2]
    rows = [line.split()[1:] for line in lines[4:10]]
    assert rows[0] == ["✓", "fox", "done", "1:15", "9,120", "faces", "│"]
    assert rows[1][:6] == ["▶", "a-bridge-in-the-old-tow…", "train", "━" * 8 + "─" * 8, "50%", "1:00"]
    assert rows[2][:4] == ["✗", "horse", "failed", "0:03"] and rows[3] == ["○", "cat", "waiting", "│"]
    assert rows[5][:3] == ["✓", "owl", "kept"]
    assert "Ctrl-C: finish early and write the meshes" in lines[-1] and "Ctrl-C again: stop at once" in text(board, stopping=True)[-1]


def test_where_scenes_are_too_many_those_at_work_are_shown():
    board = board_after([SceneState(f"s{k}", "kept") for k in range(50)] + [SceneState("bad", "failed")])
    board(SceneState("s49", "train", 0.2))
    lines = text(board, 80, 20)
    assert len(lines) == 19 and any("▶ s49" in line for line in lines) and any("✗ bad" in line for line in lines)
    shown = sum("▶" in line or "✗" in line or "✓" in line for line in lines)
    assert f"and {51 - shown} more" in lines[-2]


def test_plain_lines_of_many_scenes():
    clock, stream = Clock(), io.StringIO()
    plain = Plain(stream, clock)
    for event in [*MANY, SceneState("dog", "mesh"), replace(MANY[1], done=0.6)]:
        plain(event)
    clock.now += 10
    plain(replace(MANY[1], done=0.7))
    assert [line.split(maxsplit=1) for line in stream.getvalue().splitlines()] == [
        ["fox", "done in 1:15: 9,120 faces"], [MANY[1].name, "train  50%  1:00 left  step 300"], ["horse", "failed in 0:03: no cameras"],
        ["dog", "mesh"], ["owl", "kept"], [MANY[1].name, "train  70%  1:00 left  step 300"],
    ]  # fmt: skip


def test_the_screen_says_what_ctrl_c_would_do():
    lines = text(training_board(), stopping=True)
    assert "finishing early" in lines[2] and "Ctrl-C again: stop at once" in lines[-1]
    assert "Ctrl-C: stop ─" in text(board_after([PhaseStarted("read")]))[-1]
    meshing = board_after([PhaseStarted("train"), fake_step(1, 0.1), PhaseDone("train", 1.0), PhaseStarted("mesh")])
    assert "Ctrl-C twice: stop at once" in text(meshing)[-1]


def test_events_come_back_from_their_lines(tmp_path):
    told = [e for e in fake_events(3) if not isinstance(e, Preview)]
    told += MANY
    told.append(replace(fake_step(4, 1.0), psnr=math.inf, losses={"mask": math.nan}))
    stream = io.StringIO()
    lines = JsonLines(stream, every=0.0)
    for event in told:
        lines(event)
    *back, last = map(read_event, stream.getvalue().splitlines())
    assert [repr(e) for e in back] == [repr(rounded(e)) for e in told[:-1]]
    assert last.step == 4 and math.isnan(last.psnr) and math.isnan(last.losses["mask"])
    half = ('{"event": "step", "time": 1}', '{"event": "x", "time": 1}', '{"event": "note", "text": "a"}')
    for wrong in ("", "no json", "[1]", "3", "{}", *half):
        assert read_event(wrong) is None


def rounded(event):
    """As JSON lines carry numbers."""
    numbers = {f.name: getattr(event, f.name) for f in fields(event)}
    kept = {name: float(f"{value:.13g}") if isinstance(value, float) else value for name, value in numbers.items()}
    if "losses" in kept:
        kept["losses"] = {name: float(f"{value:.13g}") for name, value in kept["losses"].items()}
    return type(event)(**kept)


def test_phases_keep_their_order_and_new_ones_come_before_those_that_wait():
    board = board_after([PhaseStarted("scene"), PhaseDone("scene", 3.0), PhaseStarted("read")])
    assert list(board.phases) == ["scene", "read", "train", "mesh"]
    assert board.current is not None and board.current[0] == "read"
    assert "✓ scene 0:03 ── ▶ read 0:00 ── ○ train ── ○ mesh" in text(board)[1]


def test_an_empty_board_and_one_that_knows_no_time_left_can_be_drawn():
    assert len(text(board_after([]))) >= 4
    state = replace(fake_step(1, 0.0), seconds_left=math.inf, loss=math.nan, psnr=math.inf)
    assert "?:?? left" in "\n".join(text(board_after([PhaseStarted("train"), state])))


def test_the_mesh_phase_moves_the_bar():
    half, full = (text(board_after([PhaseStarted("mesh"), MeshProgress(done)]))[2] for done in (0.5, 1.0))
    assert "50%" in half and abs(half.count("━") - half.count("─")) <= 1
    assert "100%" in full and "─" not in full


def test_a_frame_costs_little():
    """3 % of a core at two frames a second is 15 ms a frame; half of that, to leave room for the terminal's share."""
    board, cells = training_board(), Cells()
    draw(board, cells, 110, 40, 0.0, False)
    start = time.process_time()
    for _ in range(20):
        draw(board, cells, 110, 40, 0.0, False)
    assert (time.process_time() - start) / 20 < 0.0075


def test_stray_prints_become_notes():
    notes = []
    print("a warning\n  on two lines", file=Strays(notes))
    assert notes == ["a warning", "  on two lines"]
    print("10 %\r20 %\r\x1b[33mdone\x1b[0m\n", file=Strays(notes))
    assert notes[2:] == ["done"]


def test_half_blocks_keep_aspect_and_mean_colour():
    picture = fake_preview(0.5).rgb  # 96 high, 72 wide
    cells = half_blocks(picture, 30, 100)
    assert cells.shape == (20, 30, 2, 3)
    np.testing.assert_allclose(cells.mean((0, 1, 2)), picture.mean((0, 1)), atol=2)
    assert half_blocks(picture, 100, 12).shape == (12, 18, 2, 3)
    assert half_blocks(picture[:1, :1], 8, 8).shape == (4, 8, 2, 3)  # enlarged where it is smaller than the cells


def test_upper_and_lower_half_are_not_swapped():
    picture = np.zeros((2, 1, 3), np.uint8)
    picture[0] = 255
    cells = half_blocks(picture, 1, 1)
    assert cells[0, 0, 0].tolist() == [255] * 3 and cells[0, 0, 1].tolist() == [0] * 3


def test_sparklines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0] * 9, 4) == "▁▁▁▁"
    assert sparkline([math.nan, math.inf], 4) == "" and sparkline([], 4) == ""
    assert sparkline([0, 0, 9, 9], 2) == "▁█"


def test_a_curve_of_any_length_keeps_its_shape():
    curve = Curve(most=64)
    for i in range(100_000):
        curve.add(float(i))
    assert 32 <= len(curve.values) < 64
    assert np.all(np.diff(curve.values) > 0) and curve.values[0] < 5000 and curve.values[-1] > 90_000
    curve.add(math.nan)
    assert all(math.isfinite(v) for v in curve.values)


def test_plain_lines_come_every_ten_seconds():
    stream, clock = io.StringIO(), Clock(0.0)
    plain = Plain(stream, clock)
    for event in fake_events(100):
        clock.now += 1.0
        plain(event)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "read   fox" and "note   intrinsics were for 1600x1200, rescaled to 800x600" in lines
    assert "train  done in 2:03: 100 steps" in lines and "mesh   done in 0:09: 118,204 faces, closed" in lines
    steps = [line for line in lines if "step " in line]
    assert 9 <= len(steps) <= 13 and steps[0].startswith("train    1%  step 1  loss 0.")
    assert all(re.search(r"psnr \d+\.\d dB  interval 0\.\d{3}  occupied \d+\.\d%  \d+ k samples/s  \d:\d\d left", line) for line in steps)
    assert stream.getvalue().isascii()


def test_json_lines_hold_every_number_and_the_last_step(tmp_path):
    path, clock = tmp_path / "new" / "log.jsonl", Clock()
    lines = JsonLines(path, clock=clock)
    for event in fake_events(100):
        clock.now += 0.1
        lines(event)
    lines.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [r for r in records if r["event"] == "step"]
    assert 9 <= len(steps) <= 13 and steps[-1]["step"] == 100
    assert set(steps[0]) >= {"step", "seconds", "loss", "psnr", "half_width", "occupied", "samples_per_second", "time"}
    names = [r["event"] for r in records if r["event"] != "step"]
    assert names == ["phase", "note", "phase_done", "phase", "saved", "phase_done", "phase", "progress", "phase_done", "saved"]


def test_json_lines_are_json_even_after_numbers_are_not():
    stream = io.StringIO()
    JsonLines(stream)(replace(fake_step(1, 0.0), loss=math.nan, seconds_left=math.inf))
    record = json.loads(stream.getvalue(), parse_constant=lambda name: pytest.fail(name))
    assert record["loss"] is None and record["seconds_left"] is None


def test_json_lines_of_a_scene_that_cannot_be_read_leave_no_file(tmp_path):
    lines = JsonLines(tmp_path / "run" / "log.jsonl")
    lines(PhaseStarted("read"))
    lines(Note("looked for cameras"))
    lines.close()
    assert not (tmp_path / "run").exists()


def test_json_lines_go_on_after_a_line_cut_by_a_kill(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    lines = JsonLines(path, append=True)
    lines(fake_step(2, 0.5))
    lines(Saved("mesh", Path("a.ply")))
    lines.close()
    written = path.read_text().splitlines()
    assert len(written) == 4 and json.loads(written[2])["step"] == 2 and json.loads(written[3])["path"] == "a.ply"


def test_even_work_tells_when_it_will_end():
    clock, told = Clock(), []
    pace = Pace(told.append, 0.2, clock=clock)
    part = pace.part(1, 4, "b.png")  # from 0.25 to 0.5
    clock.now += 0.5
    part(0.0)
    assert told == [MeshProgress(0.25, "b.png", None)], "too early to say"
    clock.now += 2.5
    part(1.0)
    assert told[1] == MeshProgress(0.5, "b.png", pytest.approx(5.0)), "0.3 in 3 s; 0.2 were there before"
    pace(1.0)
    assert told[2].seconds_left == 0
    seen = board_after([PhaseStarted("render"), told[1]])
    assert "50%  b.png  0:05 left" in text(seen)[2] and "left" not in text(board_after([PhaseStarted("render"), told[1], told[0]]))[2]
    stream = io.StringIO()
    plain = Plain(stream, clock=clock)
    for event in (PhaseStarted("render"), told[1]):
        plain(event)
        clock.now += 10
    assert stream.getvalue().splitlines()[-1] == "render  50%  b.png  0:05 left"


def test_durations_and_quantities():
    assert [duration(s) for s in (0, 59.6, 754, 3723)] == ["0:00", "1:00", "12:34", "1:02:03"]
    assert duration(math.inf) == duration(math.nan) == duration(-1) == "?:??"
    assert [quantity(n) for n in (0, 999, 41234, 1.2e6, 3.4e9)] == ["0", "999", "41.2 k", "1.2 M", "3.4 G"]
    assert [quantity(n) for n in (999.4, 999.6, 999_400, 999_700)] == ["999", "1 k", "999 k", "1 M"]


def test_closing_lines_are_six_and_name_what_comes_next():
    seconds = {"read": 2.0, "train": 123.0, "mesh": 9.0}
    lines = closing_lines("fox.ply", 118204, (1.0, 2.5, 0.333333), "watertight", seconds, "fastsurf render fox.run", False)
    assert len(lines) == 6 and lines[3] == "solid  watertight" and lines[1] == "faces  118,204" and "1 x 2.5 x 0.3333" in lines[2]
    assert lines[4] == "time   2:14 (read 0:02, train 2:03, mesh 0:09)" and lines[5].endswith("fastsurf render fox.run")


def test_the_report_of_a_scene_names_what_was_found(tiny):
    from fastsurf.doctor import Finding
    from fastsurf.info import report

    lines = report_lines(report(tiny, [Finding("doubtful", "masks", "one is empty", "replace it")]))
    seen = "\n".join(lines)
    assert re.search(r"^images +14 of 48x48: 12 to learn from, 2 held out", seen, re.M) and re.search(r"^format +transforms", seen, re.M)
    assert re.search(r"^box +centre \(.*\), radius \d", seen, re.M) and lines[-1].startswith("next")
    assert "·" in seen and any(arrow in seen for arrow in ARROWS)
    assert lines[-3:-1] == ["doubtful   one is empty", "           → replace it"]
    broken = report_lines(report(tiny, [Finding("broken", "box", "none")]), color=True)
    assert "\x1b[1;31mbroken     \x1b[0mnone" in broken and broken[-1].startswith("no ") and "\x1b" not in seen


def test_the_camera_map_points_inwards():
    angles = np.arange(8) * np.pi / 4
    towards = np.stack([np.cos(angles), np.sin(angles), np.zeros(8)], -1)
    ring = [{"center": (4 * v + 7).tolist(), "forward": (-v).tolist(), "split": "train"} for v in towards]
    lines = camera_map(ring, (7.0, 7.0, 7.0), 1.0)
    found = [(row, column, c) for row, line in enumerate(lines) for column, c in enumerate(line) if c in ARROWS]
    assert len(found) == 8
    down, right = {"→": (0, 1), "↗": (-1, 1), "↑": (-1, 0), "↖": (-1, -1), "←": (0, -1), "↙": (1, -1), "↓": (1, 0), "↘": (1, 1)}, 24
    for row, column, arrow in found:
        dy, dx = down[arrow]
        assert dy * (9 - row) >= 0 and dx * (right - column) >= 0  # towards the middle of 19 rows and 49 columns
    assert lines[9][24] == "·" and lines[0].strip() != "·"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("environ, reason", [({"TERM": "dumb"}, "TERM"), ({}, "TERM"), ({"TERM": "xterm", "NO_COLOR": "1"}, "NO_COLOR")])
def test_plain_lines_where_the_screen_would_not_work(environ, reason):
    assert why_plain(Terminal(), environ) == reason
    assert why_plain(io.StringIO(), {"TERM": "xterm"}) == "no terminal"


def test_plain_lines_on_the_terminal_of_another_session():
    """As after `setsid`: it can be written to, but says nothing of jobs and gives no keys."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        assert why_plain(stream, {"TERM": "xterm"}) == "in the background"
    os.close(ours)


def on_terminal(command, columns, rows, interrupt_after=None, environ=()):
    """Run a command on a terminal of its own: exit code, what it wrote, and the terminal's mode before and after."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    environ = inherited | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": PACKAGE} | dict(environ)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True, preexec_fn=lambda: _take_terminal(theirs)
    )
    written, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.05)[0]:
            written += os.read(ours, 1 << 16)
        elif process.poll() is not None:
            break
        if interrupt_after is not None and interrupt_after in written:
            os.write(ours, b"\x03")  # as if typed
            interrupt_after = None
    process.kill()
    process.wait()
    after = termios.tcgetattr(theirs)
    os.close(ours)
    os.close(theirs)
    return process.returncode, written.decode(), before, after


def _take_terminal(fd):
    import fcntl

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


PLAY = [sys.executable, str(Path(__file__).parent / "fake_events.py")]


def test_the_terminal_is_given_back_at_the_end():
    code, written, before, after = on_terminal([*PLAY, "2"], 100, 30)
    assert code == 0 and before == after
    assert written.count("\x1b[?1049h") == written.count("\x1b[?1049l") == 1  # the alternate screen, there and back
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor
    last = written[written.index("\x1b[?1049l") :]
    assert "note   intrinsics were for 1600x1200" in last and "▀" not in last


def test_the_terminal_is_given_back_after_ctrl_c():
    code, written, before, after = on_terminal([*PLAY, "60"], 100, 30, interrupt_after=b"normals")
    assert code != 0 and before == after
    assert written.count("\x1b[?1049l") == 1 and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "^C" not in written  # not echoed into the picture


@pytest.mark.parametrize("columns, rows, environ", [(79, 30, {}), (80, 19, {}), (100, 30, {"TERM": "dumb"}), (100, 30, {"NO_COLOR": "1"})])
def test_no_escape_codes_where_plain_lines_are_due(columns, rows, environ):
    code, written, *_ = on_terminal([*PLAY, "1"], columns, rows, environ=environ)
    assert code == 0 and "\x1b" not in written and "train  done in 2:03" in written


def test_ctrl_z_gives_the_ordinary_screen_back_and_the_job_goes_on():
    program = (
        "import os, signal, sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from fake_events import fake_events\n"
        "from fastsurf.ui import open_display\n"
        "with open_display(sys.stdout, 'fox', ('read', 'train', 'mesh'), lambda: False) as display:\n"
        "    for event in fake_events(20):\n"
        "        display(event)\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1); os.kill(os.getppid(), signal.SIGCONT); os._exit(0)\n"
        "    os.kill(os.getpid(), signal.SIGTSTP)\n"
        "    time.sleep(0.2)\n"
        "print('went on')\n"
    )
    code, written, before, after = on_terminal([sys.executable, "-c", program, str(Path(__file__).parent)], 100, 30)
    assert code == 0 and "went on" in written and before == after
    assert written.count("\x1b[?1049h") == written.count("\x1b[?1049l") == 2
