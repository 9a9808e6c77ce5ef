"""What goes wrong in long work: two runs in one folder, numbers that are not finite, full disks, no memory, photographs that vanish."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_events import fake_step
from safetensors.torch import load_file
from test_checkpoint import SMALL, training
from test_cli import PACKAGE, TINY, process

from fastsurf import checkpoint, cli
from fastsurf.backends import choose_backend
from fastsurf.checkpoint import read_header, resume, save_checkpoint
from fastsurf.config import load_config
from fastsurf.errors import BackendError, CheckpointError, ResourceError, SceneError, UsageError, lacks_memory
from fastsurf.files import check_writable, sweep, write_whole
from fastsurf.hooks import Control, Note, PhaseStarted, Saved, TrainState
from fastsurf.locks import NAME, locked
from fastsurf.memory import LEAST, in_parts
from fastsurf.model import Model
from fastsurf.output import Output
from fastsurf.reconstruction import reconstruct
from fastsurf.runs import eval_run, open_scene
from fastsurf.training import Training, train
from fastsurf.ui.jsonlines import JsonLines
from fastsurf.ui.lasting import lasting

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def small(*sets):
    return load_config(None, [*SMALL, "threads=1", *sets])


def notes(events):
    return [e.text for e in events if isinstance(e, Note)]


# two runs in one folder


def test_a_folder_in_use_is_refused_in_one_line_that_says_by_whom(tiny, tmp_path):
    with locked(tmp_path / "r"):
        with pytest.raises(UsageError, match=rf"in use by another run \(process {os.getpid()} on .+, for 0 min\)") as e:
            reconstruct(tiny, small(), run=tmp_path / "r")
        assert "\n" not in str(e.value) and [p.name for p in (tmp_path / "r").iterdir()] == [NAME]
    assert not (tmp_path / "r").exists()
    with locked(tmp_path / "r"):
        (tmp_path / "r" / "kept").touch()
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["kept"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    program = "import sys, time\nfrom pathlib import Path\nfrom fastsurf.locks import locked\n" \
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    holder = process(["-c", program, tmp_path / "r"])
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"process {holder.pid} "), locked(tmp_path / "r"):
        pass
    holder.kill()
    holder.communicate()
    assert (tmp_path / "r" / NAME).exists()
    with locked(tmp_path / "r"):
        assert json.loads((tmp_path / "r" / NAME).read_text())["pid"] == os.getpid()


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    dead = process(["-c", ""])
    dead.communicate()
    left = [tmp_path / f".mesh.ply.{dead.pid}.part", tmp_path / f".mesh.ply.{os.getpid()}.part"]
    others = [tmp_path / f".mesh.ply.{os.getppid()}.part", tmp_path / f".other.{dead.pid}.part", tmp_path / ".mesh.ply.mine.part"]
    for path in left + others:
        path.touch()
    sweep(tmp_path / "mesh.ply")
    assert set(tmp_path.iterdir()) == set(others)
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {others[0], others[2]}, "in a folder whatever they wrote"


def test_a_run_sweeps_whatever_the_one_before_left(tiny, tmp_path):
    dead = process(["-c", ""])
    dead.communicate()
    for name in ("mesh.json", "config.toml", "begun.json", "poses/poses.json", "../m.obj", "../m.png", "../m.mtl"):
        file = tmp_path / "r" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(f".{file.name}.{dead.pid}.part").touch()
    with pytest.raises(SceneError):
        reconstruct(tmp_path / "no scene", small(), run=tmp_path / "r", out=tmp_path / "m.obj", output=Output(texture=64))
    assert not [path for path in tmp_path.rglob(".*.part")]


def test_a_folder_that_takes_no_files_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    def read_only(path, flags, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("fastsurf.files.os.open", read_only)
    with pytest.raises(OSError, match="can't write there: Read-only file system"):
        check_writable(tmp_path / "new" / "folder")
    with pytest.raises(OSError, match="Read-only"):
        reconstruct(tmp_path / "no scene", small(), run=tmp_path / "r")
    assert not list(tmp_path.iterdir())


# signals and terminals


@pytest.mark.skipif(cli.HANGUP is None, reason="this system has no SIGHUP")
def test_a_terminal_that_hangs_up_twice_asks_once():
    interrupt = cli.Interrupt()
    interrupt.watch(PhaseStarted("train"))
    interrupt.handle(signal.SIGHUP, None)
    interrupt.handle(signal.SIGHUP, None)
    assert interrupt.requested() and not interrupt.stopped_at_once
    with pytest.raises(KeyboardInterrupt):
        interrupt.handle(signal.SIGTERM, None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.Interrupt().installed(False):  # under nohup
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_closed_ends_early_and_keeps_everything(tiny_folder, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    words = ["-m", "fastsurf", tiny_folder, "--run", tmp_path / "r", "--set", "train.steps=100000", *TINY[2:]]
    p = subprocess.Popen(
        [sys.executable, *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=os.environ | {"PYTHONPATH": PACKAGE, "TERM": "dumb"}, preexec_fn=lambda: _take_terminal(theirs),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"step " not in seen:
        seen += os.read(ours, 1 << 16)
    os.close(ours)  # the kernel sends SIGHUP, and every write fails from now on
    assert p.wait(120) == cli.STOPPED
    assert {"mesh.ply", "checkpoint.safetensors"} <= {path.name for path in (tmp_path / "r").iterdir()}


def _take_terminal(fd):
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup ignores it, and so would the run


def test_a_stream_that_is_gone_stops_nobody():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        stream = lasting(pipe)
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)
        assert lasting(stream) is stream and not stream.isatty()
        pipe.write("for the interpreter's own flush at the end")


# numbers that are not finite


@pytest.fixture(params=["native", "reference"])
def run(request, tiny):
    """A run of each path: the native step, and autograd."""
    try:
        backend = choose_backend(request.param)
    except BackendError as e:
        pytest.skip(f"no native library here: {e}")
    made = Training(tiny, Model(small(), backend, "random"), backend)
    assert (made.fused is not None) == (request.param == "native")
    return made


def everything(run):
    state = {**run.model.state_dict(), **run.optimizer.tensors()}
    return {name: t.clone() for name, t in state.items() if not name.startswith("grid.")}


def spoil_gradients(run, monkeypatch):
    """A gradient of one matrix alone is not finite; the loss is."""
    if run.fused is None:
        return run.model.head.weights[0].register_hook(lambda g: g * torch.inf).remove
    step = run.fused.backend.train_step

    def spoiled(look, parameters, gradients):
        learned = step(look, parameters, gradients)
        gradients.w1[0, 0] = torch.nan
        return learned

    monkeypatch.setattr(run.fused.backend, "train_step", spoiled, raising=False)
    return lambda: monkeypatch.setattr(run.fused.backend, "train_step", step)


def spoil_photographs(run, monkeypatch):
    sample = run.scene.sample

    def spoiled(*args):
        batch = sample(*args)
        return replace(batch, rgb=torch.where(torch.arange(len(batch.rgb))[:, None] == 3, torch.nan, batch.rgb))

    monkeypatch.setattr(run.scene, "sample", spoiled)
    return lambda: monkeypatch.setattr(run.scene, "sample", sample)


@pytest.mark.parametrize("spoil, cause", [(spoil_gradients, "gradients are"), (spoil_photographs, "the loss color is")])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(run, monkeypatch, tmp_path, spoil, cause):
    steps, undo, before = train(run), None, None
    for state in steps:
        if state.step == 6:
            undo, before = spoil(run, monkeypatch), everything(run)
        if state.step == 8:
            assert undo is not None and before is not None
            undo()
            after = everything(run)
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert state.skipped == 2 and f"step 6 was skipped: {cause} not finite" in run.note
            save_checkpoint(tmp_path / "c.safetensors", run)
    assert state.step == 24 and state.skipped == 2 and run.optimizer.count == 22 and state.psnr > 0
    again = Training(run.scene, Model(run.config, run.backend, "random"), run.backend)
    resume(tmp_path / "c.safetensors", again)
    assert again.skipped == 2 and again.optimizer.count == 6
    for _ in train(again):
        pass
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in run.model.state_dict().items())


def test_a_parameter_that_is_not_finite_ends_the_run_and_not_the_checkpoint(tiny, tmp_path):
    def poison(event):
        if isinstance(event, TrainState) and event.step == 7:
            kept.append((tmp_path / "r" / "checkpoint.safetensors").read_bytes())
            made[0].head.weights[0].data[0, 0] = torch.nan

    kept, made = [], []
    model = Model.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "__init__", lambda self, *a, **k: (made.append(self), model(self, *a, **k))[1])
        with pytest.raises(BackendError, match=r"head.* not finite, so no checkpoint was written"):
            reconstruct(tiny, small("train.save_every=0", "train.preview_every=1e9"), run=tmp_path / "r", hooks=[poison])
        made.clear()
        with pytest.raises(BackendError, match=r"diverged at step 11: the loss .* 4 in all"):
            reconstruct(tiny, small("train.skip_limit=3", "train.preview_every=1e9"), run=tmp_path / "s",
                        hooks=[lambda e: isinstance(e, TrainState) and e.step == 8
                               and made[0].head.weights[0].data.fill_(torch.nan)])  # fmt: skip
    assert not (tmp_path / "s" / "checkpoint.safetensors").exists()
    tensors = load_file(tmp_path / "r" / "checkpoint.safetensors")
    assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith(("model.", "adam.")))


def test_skipped_steps_are_shown():
    from fastsurf.ui.plain import step_line

    assert step_line(replace(fake_step(3, 0.1), skipped=2)).endswith("left  2 skipped") and "skipped" not in step_line(fake_step(3, 0.1))


# full disks


@pytest.fixture
def full_disk(monkeypatch):
    """Files whose final names are in the set can't be written."""
    names, fsync = set(), os.fsync

    def sync(file):
        name = re.sub(r"^\.(.*)\.\d+\.part$", r"\1", os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        if name in names:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell which file is written")
    monkeypatch.setattr(os, "fsync", sync)
    return names


def test_a_checkpoint_that_has_no_room_is_tried_again_and_training_goes_on(tiny, tmp_path, full_disk):
    seen, at = [], {}
    path = tmp_path / "r" / "checkpoint.safetensors"

    def room(event):
        seen.append(event)
        if isinstance(event, TrainState):
            at[event.step] = read_header(path).step if path.exists() else None
            full_disk.clear()
            full_disk.update(("checkpoint.safetensors", "first_mesh.ply") if 4 <= event.step < 19 else ())

    result = reconstruct(tiny, small("train.save_every=0", "train.preview_every=1e9"), run=tmp_path / "r", hooks=[room])
    assert at[5] == at[19] == 3 and read_header(path).step == 24 and result.state.step == 24
    wanted = "the checkpoint could not be written (No space left on device): the run goes on, what was saved before stays"
    assert notes(seen).count(wanted) == 15 and any("the first mesh could not be written" in text for text in notes(seen))
    assert not [p for p in (tmp_path / "r").iterdir() if p.suffix == ".part"] and not (tmp_path / "r" / "first_mesh.ply").exists()


def test_a_mesh_that_has_no_room_says_how_to_make_it_again(tiny, tmp_path, full_disk):
    full_disk.add("mesh.ply")
    run = tmp_path / "r"
    with pytest.raises(ResourceError, match=r"the disk is full .*mesh\.ply.*: what was learned is in .*checkpoint\.safetensors") as e:
        reconstruct(tiny, small(), run=run)
    assert f"`fastsurf mesh {run} -o FILE`" in str(e.value) and "\n" not in str(e.value)
    assert read_header(run / "checkpoint.safetensors").step == 24 and not (run / "mesh.ply").exists() and not (run / NAME).exists()


def test_a_last_checkpoint_that_has_no_room_is_an_error_but_the_mesh_is_there(tiny, tmp_path, full_disk):
    full_disk.add("checkpoint.safetensors")
    with pytest.raises(ResourceError, match=r"the disk is full .*checkpoint\.safetensors"):
        reconstruct(tiny, small(), run=tmp_path / "r")
    assert (tmp_path / "r" / "mesh.ply").exists() and not (tmp_path / "r" / "checkpoint.safetensors").exists()


def test_a_limit_on_the_size_of_files_is_one_line(tiny_folder, tmp_path):
    resource = pytest.importorskip("resource")
    p = process(["-m", "fastsurf", tiny_folder, "--run", tmp_path / "r", *TINY],
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))  # fmt: skip
    out, err = p.communicate(timeout=120)
    assert p.returncode == 1 and err.count("\n") == 1 and "the disk is full" in err and "fastsurf mesh" in err, err
    assert "the checkpoint could not be written (File too large)" in out
    assert {path.name for path in (tmp_path / "r").iterdir()} <= {"begun.json", "log.jsonl", "config.toml", "preview.png", "first_mesh.ply"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_a_log_that_has_no_room_is_a_note(tiny, tmp_path):
    seen = []
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "log.jsonl").symlink_to("/dev/full")
    result = reconstruct(tiny, small("train.steps=2"), run=tmp_path / "r", hooks=[seen.append])
    assert result.mesh_path.exists() and sum("log.jsonl can't be written (No space" in text for text in notes(seen)) == 1


def test_lines_wait_until_there_is_room(tmp_path, monkeypatch):
    class Disk(io.BytesIO):
        room = 1000

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = min(self.room, len(data))
            self.room -= taken
            return super().write(data[:taken])

        def close(self):
            pass

    disk = Disk()
    monkeypatch.setattr("fastsurf.ui.jsonlines._open", lambda *_: disk)
    lines = JsonLines(tmp_path / "log.jsonl", every=0.0)
    for step in range(1, 11):
        lines(fake_step(step, step / 10))
    assert "log.jsonl can't be written (No space left on device)" in lines.trouble and len(disk.getvalue()) == 1000
    disk.room = 1 << 20
    lines(Saved("mesh", Path("a.ply")))
    lines.close()
    told = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [r.get("step") for r in told] == [*range(1, 11), None] and lines.trouble == ""


# memory


def test_what_does_not_fit_is_halved_until_it_does():
    seen, done = [], []

    def work(part):
        if part.stop - part.start > 1000:
            raise RuntimeError(NO_MEMORY)
        return range(part.start, part.stop)

    for part in in_parts(work, 5000, 4096, seen.append):
        done += part
    assert done == list(range(5000)) and [re.sub(r"\D", "", text) for text in notes(seen)] == ["2048", "1024", "512"]
    with pytest.raises(RuntimeError, match="allocate"):
        list(in_parts(lambda part: work(slice(0, 2000)), 5000, 4 * LEAST, seen.append))
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_parts(lambda part: (_ for _ in ()).throw(RuntimeError("shapes")), 5000, 4096, seen.append))
    assert lacks_memory(MemoryError()) and lacks_memory(torch.OutOfMemoryError("CUDA out of memory.")) and not lacks_memory(OSError())


def test_a_mesh_is_made_in_smaller_parts_where_memory_is_short(tiny, tmp_path, monkeypatch):
    level, seen = Model.level, []

    def short(self, x):
        if len(x) > 3000:
            raise RuntimeError(NO_MEMORY)
        return level(self, x)

    whole = reconstruct(tiny, small(), run=tmp_path / "a").mesh
    monkeypatch.setattr(Model, "level", short)
    monkeypatch.setattr(Model, "update_grid", lambda *_, **__: None)  # it looks at all cells at once
    parts = reconstruct(tiny, small(), run=tmp_path / "b", hooks=[seen.append]).mesh
    assert len(parts.faces) > 0.5 * len(whole.faces) and any("memory is short: from now on 2048 points" in text for text in notes(seen))


@pytest.mark.parametrize("where, phase", [("fastsurf.training.learn", "training"), ("fastsurf.reconstruction.clean", "meshing"),
                                          ("fastsurf.reconstruction.load_scene", "reading the photographs")])  # fmt: skip
def test_no_memory_is_one_line_that_names_what_takes_less(tiny_folder, tmp_path, monkeypatch, where, phase):
    def short(*_, **__):
        raise MemoryError if phase == "meshing" else RuntimeError(NO_MEMORY)

    monkeypatch.setattr(where, short)
    wanted = {"training": r"train\.rays \(64\), field\.log2_entries \(10\)", "meshing": r"--resolution 24: what was learned is in"}
    with pytest.raises(ResourceError, match=f"out of memory in {phase}; less takes .*{wanted.get(phase, 'scene.max_side=800')}") as e:
        reconstruct(tiny_folder, small("train.steps=2"), run=tmp_path / "r")
    assert "\n" not in str(e.value)


def test_no_memory_for_a_checkpoint_does_not_end_the_run(tiny, tmp_path, monkeypatch):
    save, tries, seen = checkpoint.save, [], []

    def short(*arguments, **named):
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return save(*arguments, **named)

    monkeypatch.setattr(checkpoint, "save", short)
    reconstruct(tiny, small("train.steps=3", "train.save_every=0"), run=tmp_path / "r", hooks=[seen.append])
    assert "the checkpoint could not be written (out of memory): the run goes on, what was saved before stays" in notes(seen)
    assert read_header(tmp_path / "r" / "checkpoint.safetensors").step == 3


def test_an_address_space_that_is_too_small_is_one_line(tiny_folder, tmp_path):
    """The limit is set once all libraries are in."""
    pytest.importorskip("resource")
    program = (
        "import resource, sys\nfrom fastsurf import cli, hooks, reconstruction\n"
        "def limit(event):\n"
        "    if isinstance(event, hooks.PhaseStarted) and event.name == 'train':\n"
        "        now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), -1))\n"
        "cli.Interrupt.watch = lambda self, event: limit(event)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    sets = ["--set", "field.log2_entries=22", "--set", "field.levels=16", "--set", "field.finest_resolution=2048"]
    p = process(["-c", program, tiny_folder, "--run", tmp_path / "r", *TINY, *sets])
    _, err = p.communicate(timeout=120)
    assert p.returncode == 1 and err.count("\n") == 1 and "out of memory in training; less takes a lower train.rays (64)" in err, err


# photographs and clocks


def test_photographs_may_go_once_they_are_read_and_are_missed_afterwards(tiny_folder, tmp_path):
    folder = tmp_path / "scene"
    shutil.copytree(tiny_folder, folder)
    pictures = sorted(folder.rglob("*.png"))

    def remove(event):
        if isinstance(event, TrainState) and event.step == 3:
            pictures[0].unlink()

    result = reconstruct(folder, small(), run=tmp_path / "r", hooks=[remove])
    assert result.state.step == 24 and result.mesh_path.exists()
    with pytest.raises(CheckpointError, match=rf"no longer those of the run: .*{re.escape(pictures[0].name)} is gone; ") as e:
        eval_run(result.run, backend="reference")
    assert "\n" not in str(e.value)
    pictures[1].write_bytes(b"no picture any more")
    shutil.copy(pictures[2], pictures[0])
    with pytest.raises(SceneError, match=rf"{re.escape(pictures[1].name)} can't be read"):
        open_scene(read_header(result.run / "checkpoint.safetensors"))


def test_a_clock_that_is_set_back_does_not_stop_the_log(tmp_path, monkeypatch):
    lines, times = JsonLines(tmp_path / "log.jsonl", every=0.0), iter([2e9, 1e9, 1.0])
    monkeypatch.setattr("fastsurf.ui.jsonlines.time.time", lambda: next(times))
    for step in (1, 2, 3):
        lines(fake_step(step, 0.1))
    lines.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


# what the owner wants


def test_a_pause_stops_the_clock_and_changes_nothing(tiny, tmp_path):
    control, seen = Control(), []

    def owner(event):
        seen.append(event)
        if isinstance(event, TrainState) and event.step == 3:
            control.paused = True
            for wish in ("save", "mesh", "view"):
                control.want(wish)
        if isinstance(event, Saved) and event.what == "preview mesh":
            assert read_header(tmp_path / "a" / "checkpoint.safetensors").step == 3
            control.paused = False

    alone, paused = (
        reconstruct(tiny, small(), run=tmp_path / name, control=control, hooks=hooks) for name, hooks in (("b", []), ("a", [owner]))
    )
    steps = [e for e in seen if isinstance(e, TrainState)]
    assert [e.step for e in steps] == list(range(1, 25)) and (tmp_path / "a" / "preview.ply").exists()
    assert (tmp_path / "a" / "mesh.ply").read_bytes() == (tmp_path / "b" / "mesh.ply").read_bytes()
    assert alone.state.step == paused.state.step == 24


def test_seconds_of_a_pause_are_not_counted(tiny):
    run = training(tiny, "train.steps=3")
    seconds = []
    for state in train(run):
        seconds.append(state.seconds)
        run.paused = 1000.0
    assert -2000 < seconds[-1] < -1900


def test_a_pause_ends_when_the_run_is_stopped(tiny, tmp_path):
    control, asked = Control(), []
    control.paused = True
    result = reconstruct(tiny, small(), run=tmp_path / "r", control=control, should_stop=lambda: asked.append(1) or len(asked) > 3)
    assert result.stopped and result.state.step == 1


def test_a_whole_file_names_itself_when_the_disk_is_full(tmp_path, full_disk):
    full_disk.add("f")
    with pytest.raises(OSError) as e:
        write_whole(tmp_path / "f", b"x")
    assert e.value.filename == str(tmp_path / "f") and not list(tmp_path.iterdir())
