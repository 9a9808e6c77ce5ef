"""Many scenes: names, parts, what is kept, resumed and made anew, what fails, and that nothing outlives the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_events import fake_step
from test_checkpoint import SMALL
from test_cli import PACKAGE, TINY, fails, run

from fastsurf import batch as module
from fastsurf.batch import Job, Place, Row, batch, fingerprint, here, make, names_of, places, plan, read_summary, summary
from fastsurf.child import ChildError
from fastsurf.config import load_config
from fastsurf.errors import UsageError
from fastsurf.hooks import Note, PhaseStarted, Saved, SceneState, TrainState
from fastsurf.ui.jsonlines import JsonLines, read_event

CONFIG = load_config(None, [*SMALL, "threads=1"])


@pytest.fixture()
def scenes(tmp_path):
    """Three folders that are no scenes yet, but whose names and files are looked at."""
    for name in ("one", "two", "three"):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / "0.png").write_bytes(name.encode())
    return [tmp_path / name for name in ("one", "two", "three")]


class Told(list):
    """Takes events as a stream takes their JSON lines."""

    def write(self, line: str) -> None:
        self.append(line)

    def flush(self) -> None:
        pass


@pytest.fixture()
def children(monkeypatch):
    """Processes that never were: they write mesh and checkpoint, or end as `fate` has it; the words of each."""
    asked: list[list[str]] = []
    fate: dict[str, int | BaseException] = {}

    class Fake:
        def __init__(self, words, log, what, variables):
            asked.append([str(word) for word in words] + [f"{key}={value}" for key, value in variables.items()])
            self.run_folder, self.mesh = Path(words[words.index("--run") + 1]), Path(words[words.index("-o") + 1])

        def run(self, on_line):
            said = Told()
            tell = JsonLines(said, every=0.0)
            code = fate.get(self.mesh.stem, 0)
            for event in (PhaseStarted("read"), Note("a remark"), PhaseStarted("train"), fake_step(7, 0.5)):
                tell(event)
            (self.run_folder / "checkpoint.safetensors").write_text("state")
            if code in (0, 130):
                self.mesh.write_text("mesh")
                tell(PhaseStarted("mesh"))
                tell(Saved("mesh", self.mesh))
            for line in [*said, "words that are no event\n"]:
                on_line(line)
            if isinstance(code, BaseException):
                raise code
            if code:
                raise ChildError("it broke", code)
            return {"wall_seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 100.0}

        def interrupt(self):
            pass

        def end(self):
            pass

    class Surface:
        faces = (0,) * 1234

    monkeypatch.setattr(module, "Attended", Fake)
    monkeypatch.setattr(module, "read_mesh", lambda path: Surface)
    monkeypatch.setattr(module, "_can_go_on", lambda path: path.is_file())
    return asked, fate


def test_names_are_folders_and_tell_scenes_apart(tmp_path):
    given = ["/a/fox", "/b/fox", "/b/horse", "/a/fox", "/c/Horse", "/x/y/z/ball", "/"]
    found = names_of([Path(name) for name in given])
    assert {name: str(path) for name, path in found.items()} == {
        "a-fox": "/a/fox", "b-fox": "/b/fox", "b-horse": "/b/horse", "c-Horse": "/c/Horse", "ball": "/x/y/z/ball", "scene": "/"
    }  # fmt: skip
    for name in ("a.mp4", "a.mov", "s/transforms.json", "s/other.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = names_of([tmp_path / "a.mp4", tmp_path / "s" / "transforms.json"])
    assert set(found) == {"a", "s"}
    found = names_of([tmp_path / name for name in ("a.mp4", "a.mov", "s/transforms.json", "s/other.json")])
    assert len(found) == 4 and len({name.casefold() for name in found}) == 4 and not any("/" in name for name in found)


def test_parts_are_disjoint_complete_and_always_the_same(scenes, children, tmp_path):
    whole = [job.name for job in plan(scenes, tmp_path / "out", CONFIG)]
    assert whole == ["one", "three", "two"] == [job.name for job in plan(scenes[::-1], tmp_path / "out", CONFIG)]
    parts = [[row.name for row in batch(scenes, tmp_path / "out", CONFIG, shard=(i, 2))] for i in (1, 2)]
    assert parts == [["one", "two"], ["three"]]
    assert batch(scenes, tmp_path / "out", CONFIG, shard=(9, 9)) == [] and summary([]) == ["no scenes in this part"]
    assert [row.name for row in read_summary(tmp_path / "out")] == whole


def test_a_fingerprint_changes_with_what_decides_the_result_alone(scenes, tmp_path):
    scene, out = scenes[0], scenes[0] / "out"
    before = fingerprint(scene, CONFIG, None, out)
    assert before == fingerprint(scene, replace(CONFIG, threads=7), None, out)
    seeded = load_config(None, [*SMALL, "threads=1", "train.seed=1"])
    assert len({before, fingerprint(scene, seeded, None, out), fingerprint(scene, CONFIG, "colmap", out)}) == 3
    out.mkdir()
    (out / "one.ply").touch()
    (scene / ".hidden").touch()
    assert fingerprint(scene, CONFIG, None, out) == before
    masks = tmp_path / "masks"
    masks.mkdir()
    masked = replace(CONFIG, scene=replace(CONFIG.scene, masks=str(masks)))
    without = fingerprint(scene, masked, None, out)
    (masks / "0.png").touch()
    assert fingerprint(scene, masked, None, out) != without
    os.utime(scene / "images" / "0.png", (1, 1))
    touched = fingerprint(scene, CONFIG, None, out)
    (scene / "images" / "1.png").touch()
    assert len({before, touched, fingerprint(scene, CONFIG, None, out)}) == 3


def test_running_again_is_the_retry(scenes, children, tmp_path):
    asked, fate = children
    out, events = tmp_path / "out", []
    fate |= {"one": -9, "two": 130}
    rows = batch([*scenes, tmp_path / "gone"], out, CONFIG, hooks=[events.append])
    assert [(row.name, row.state, row.faces) for row in rows] == [
        ("gone", "failed", None), ("one", "failed", None), ("three", "done", 1234), ("two", "stopped", 1234)
    ]  # fmt: skip
    assert "no such file or folder" in rows[0].note and rows[1].note == "it broke" and rows[2].steps == 7 and rows[2].peak_mb == 100
    assert rows[2].notes == ("a remark",) and not (out / "gone.run").exists()
    assert ["--force" in words for words in asked] == [True] * 3
    states = [(e.name, e.state) for e in events if isinstance(e, SceneState)]
    assert states[:4] == [(name, "waiting") for name in ("gone", "one", "three", "two")]
    assert [state for name, state in states if name == "three"] == ["waiting", "starting", "read", "train", "train", "mesh", "done"]
    assert isinstance(events[-1], Saved) and events[-1].path == out / "summary.md"

    asked.clear()
    fate.clear()
    rows = batch(scenes, out, CONFIG)
    assert [(row.name, row.state) for row in rows] == [("one", "done"), ("three", "kept"), ("two", "done")]
    assert [("--resume" in words, "--force" in words) for words in asked] == [(True, False)] * 2
    latest = {row.name: row.state for row in read_summary(out)}
    assert latest == {"gone": "failed", "one": "done", "three": "done", "two": "done"}
    assert len((out / "summary.jsonl").read_text().splitlines()) == 6
    table = (out / "summary.md").read_text()
    assert "# 4 scenes: 3 done, 1 failed" in table and "| three | done | 1234 | 7 |" in table and "- three: a remark" in table

    asked.clear()
    changed = load_config(None, [*SMALL, "threads=1", "train.seed=5"])
    (scenes[0] / "images" / "more.png").touch()
    (out / "two.ply").unlink()
    assert [row.state for row in batch(scenes, out, CONFIG)] == ["done", "kept", "done"]
    assert [("--resume" in words, Path(words[1]).name) for words in asked] == [(False, "one"), (True, "two")]
    asked.clear()
    assert [row.state for row in batch(scenes, out, changed)] == ["done"] * 3
    assert all("--resume" not in words for words in asked)


def test_what_is_not_ours_is_refused_before_anything_runs(scenes, children, tmp_path):
    asked, _ = children
    out = tmp_path / "out"
    out.mkdir()
    (out / "one.ply").write_text("mine")
    with pytest.raises(UsageError, match=r"one\.ply is of no batch: --force"):
        batch(scenes, out, CONFIG)
    assert asked == [] and (out / "one.ply").read_text() == "mine" and not (out / "summary.jsonl").exists()
    assert {row.state for row in batch(scenes, out, CONFIG, force=True)} == {"done"}
    other = tmp_path / "elsewhere" / "one"
    shutil.copytree(scenes[0], other)
    with pytest.raises(UsageError, match=r"one\.run was made from .*/one, not .*/elsewhere/one: --force"):
        batch([other], out, CONFIG)
    with pytest.raises(UsageError, match="batch wants SCENES"):
        batch([], out, CONFIG)


def test_unfinished_ones_are_started_anew_if_forced_and_finished_ones_kept(scenes, children, tmp_path):
    asked, fate = children
    fate["one"] = 1
    batch(scenes, tmp_path / "out", CONFIG)
    asked.clear()
    assert [row.state for row in batch(scenes, tmp_path / "out", CONFIG, force=True)] == ["failed", "kept", "kept"]
    assert ["--force" in words for words in asked] == [True]


def test_lost_and_torn_summaries_are_mended(scenes, children, tmp_path):
    out = tmp_path / "out"
    batch(scenes[:2], out, CONFIG)
    (out / "summary.jsonl").unlink()
    batch(scenes[:1], out, CONFIG)
    assert [(row.name, row.state) for row in read_summary(out)] == [("one", "done")]
    with (out / "summary.jsonl").open("a") as file:
        file.write('{"name": "tw')
    batch(scenes, out, CONFIG)
    assert [(row.name, row.state) for row in read_summary(out)] == [("one", "done"), ("three", "done"), ("two", "done")]
    (out / "one.run" / "batch.json").write_text("{")
    with pytest.raises(UsageError, match="of no batch"):
        batch(scenes, out, CONFIG)


def test_a_fault_of_ours_is_not_lost_in_a_thread(scenes, children, tmp_path):
    children[1]["one"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        batch(scenes, tmp_path / "out", CONFIG, run=here(2))


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 7)
    assert [p.threads for p in places(3)] == [3, 2, 2] and [p.threads for p in places(9)] == [1] * 9
    assert places(3, ("0", "GPU-1"), threads=4) == [Place(4, "0"), Place(4, "GPU-1"), Place(4, "0")]


def test_each_scene_gets_its_gpu_and_threads(scenes, children, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 4)
    batch(scenes[:1], tmp_path / "out", CONFIG, run=here(4, ("3",)), format="colmap")
    (words,) = children[0]
    assert words[-1] == "CUDA_VISIBLE_DEVICES=3"
    assert words[words.index("--threads") + 1] == "4" and words[words.index("--format") + 1] == "colmap"


class Endless:
    """A process that works until it is ended; Ctrl-C is counted."""

    def __init__(self) -> None:
        self.interrupts, self.over = 0, False

    def interrupt(self) -> None:
        self.interrupts += 1

    def end(self) -> None:
        self.over = True


def test_to_finish_early_asks_each_process_once_and_to_stop_ends_them(scenes, tmp_path, monkeypatch):
    made: list[Endless] = []

    def endless(job, place, tell, attend):
        child = Endless()
        made.append(child)
        attend(child)
        while not child.over:
            time.sleep(0.01)
        return Row(job.name, str(job.scene), "stopped", job.identity)

    monkeypatch.setattr(module, "make", endless)
    monkeypatch.setattr(module, "TICK", 0.01)
    jobs = [Job(str(k), scenes[0], tmp_path, CONFIG, None, "") for k in range(3)]
    looks = []

    def stopping() -> bool:
        looks.append(len(made))
        if len(looks) > 30:
            raise KeyboardInterrupt
        return len(looks) > 10

    with pytest.raises(KeyboardInterrupt):
        list(here(2)(jobs, stopping))
    assert [(child.interrupts, child.over) for child in made] == [(1, True)] * 2  # the third was never begun


def test_a_scene_that_cannot_be_written_is_a_row(scenes, tmp_path):
    (tmp_path / "out").write_text("a file")
    job = plan(scenes[:1], tmp_path / "out", CONFIG)[0]
    row = make(job, Place(1), lambda state: None, lambda child: None)
    assert row.state == "failed" and row.note


def test_wrong_usage(capsys, scenes, tmp_path):
    for words, pattern in (
        (["one"], "wants -o DIR"), (["-o", "out"], "wants SCENES"), (["one", "-o", "out", "--jobs", "0"], "--jobs wants 1"),
        (["one", "-o", "out", "--gpus", "0,0"], "each GPU once"), (["one", "-o", "out", "--shard", "0/3"], "I from 1 to N"),
        (["one", "-o", "out", "--shard", "3"], "such as 2/8"), (["one", "-o", "out", "--gpus", "0", "--ray", "auto"], "this machine alone"),
    ):  # fmt: skip
        fails(capsys, 2, pattern, "batch", *words)


@pytest.fixture(scope="module")
def pair(tiny_folder, tmp_path_factory):
    """The same small scene twice, by the same name."""
    folder = tmp_path_factory.mktemp("pair")
    for name in ("a", "b"):
        shutil.copytree(tiny_folder, folder / name / "ball", ignore=shutil.ignore_patterns("gt"))
    return [folder / name / "ball" for name in ("a", "b")]


def test_two_scenes_at_a_time(pair, tmp_path, capsys):
    out = tmp_path / "out"
    code, said, _ = run(capsys, "batch", *pair, tmp_path / "none", "-o", out, "--jobs", "2", *TINY)
    assert code == 1 and "a-ball done" in said and "none: no such file" in said
    rows = {row.name: row for row in read_summary(out)}
    assert [rows[name].state for name in ("a-ball", "b-ball", "none")] == ["done", "done", "failed"]
    first, second = ((out / f"{name}.ply").read_bytes() for name in ("a-ball", "b-ball"))
    assert first == second and rows["a-ball"].steps == 24 and rows["a-ball"].faces > 100 and rows["a-ball"].peak_mb > 50
    before = (out / "a-ball.ply").stat().st_mtime_ns
    code, said, _ = run(capsys, "batch", *pair, "-o", out, *TINY)
    assert code == 0 and said.count("kept") == 4 and (out / "a-ball.ply").stat().st_mtime_ns == before


def begun(words):
    """The command, once its scene is in training."""
    process = subprocess.Popen([sys.executable, "-m", "fastsurf", *map(str, words)], env=os.environ | {"PYTHONPATH": PACKAGE},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    while " train" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    return process


def gone(pid):
    """Whether a process has ended, if perhaps nobody has asked for its exit code yet."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(what):
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child in /proc, which Linux alone has")
def test_killed_it_goes_on_and_ctrl_c_writes_the_mesh(pair, tmp_path):
    out = tmp_path / "out"
    words = ["batch", pair[0], "-o", out, *TINY, "--steps", "100000", "--set", "train.save_every=0.2", "--set", "train.preview_every=100"]
    process, log, checkpoint = begun(words), out / "ball.run" / "log.jsonl", out / "ball.run" / "checkpoint.safetensors"
    wait_for(checkpoint.exists)
    (child,) = [int(pid) for task in Path(f"/proc/{process.pid}/task").iterdir() for pid in (task / "children").read_text().split()]
    process.kill()
    process.communicate()
    wait_for(lambda: gone(child))
    assert module._can_go_on(checkpoint) and json.loads((out / "ball.run" / "batch.json").read_text())["state"] == "begun"

    process = begun(words)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "" and "stopped in " in said
    (row,) = read_summary(out)
    assert row.state == "stopped" and row.mesh == "ball.ply" and (out / "ball.ply").is_file()
    steps = [event.step for line in log.read_text().splitlines() if isinstance(event := read_event(line), TrainState)]
    assert steps == sorted(steps) and steps[0] == 1 < row.steps, "the second went on where the first had saved"
