"""Saving, resuming, and what happens to damaged or foreign files."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastsurf.backends import choose_backend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.checkpoint import FORMAT, read_header, resume, save_checkpoint
from fastsurf.config import load_config
from fastsurf.errors import BackendError, CheckpointError, UsageError
from fastsurf.files import write_whole
from fastsurf.model import Model
from fastsurf.training import Training, train

SMALL = [
    "train.steps=24", "train.rays=64", "grid.resolution=16", "grid.steps=64", "grid.update_every=4", "field.levels=3",
    "field.log2_entries=10", "field.finest_resolution=40", "field.width=16", "color.width=16", "sampling.front=2", "sampling.interval=4",
    "backend=reference", "mesh.resolution=48",
]  # fmt: skip


def training(scene, *sets):
    config = load_config(None, [*SMALL, *sets])
    backend = ReferenceBackend()
    return Training(scene, Model(config, backend, "random"), backend)


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_a_resumed_run_ends_like_one_left_alone(tiny, tmp_path):
    alone = training(tiny)
    for _ in train(alone):
        pass
    first = training(tiny)
    for state in train(first):
        if state.step == 9:
            break
    save_checkpoint(tmp_path / "c.safetensors", first)
    second = training(tiny)
    resume(tmp_path / "c.safetensors", second)
    steps = [state.step for state in train(second)]
    assert steps == list(range(10, 25))
    assert torch.equal(parameters(second), parameters(alone))
    assert torch.equal(second.model.grid.values, alone.model.grid.values)
    assert alone.disputes.errors.any() and torch.equal(second.disputes.errors, alone.disputes.errors)


def test_a_run_that_had_its_time_has_had_it_when_it_is_resumed(tiny, tmp_path):
    """What it kept for reading and meshing is no more to learn in, now that the photographs are read again."""
    alone = training(tiny, "train.steps=none", "train.minutes=1")
    alone.seconds, alone.besides, alone.meshed = 48.0, 12.0, True
    alone.skipped, alone.in_a_row = 5, 3
    save_checkpoint(tmp_path / "c.safetensors", alone)
    again = training(tiny, "train.steps=none", "train.minutes=1")
    resume(tmp_path / "c.safetensors", again)
    assert alone.progress() == again.progress() == 1.0 and again.meshed and (again.skipped, again.in_a_row) == (5, 3)


def test_a_run_goes_on_with_its_own_seed(tiny, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", training(tiny))
    with pytest.raises(UsageError, match=r"with train\.seed 0, now it is 7: resume it as it was"):
        resume(tmp_path / "c.safetensors", training(tiny, "train.seed=7"))


def test_training_changes_the_parameters_and_repeats_with_its_seed(tiny):
    runs = [training(tiny), training(tiny), training(tiny, "train.seed=1")]
    before = parameters(runs[0]).clone()
    for run in runs:
        for state in train(run):
            assert state.loss > 0
    assert not torch.equal(parameters(runs[0]), before)
    assert torch.equal(parameters(runs[0]), parameters(runs[1]))
    assert not torch.equal(parameters(runs[0]), parameters(runs[2]))


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from fastsurf.config import load_config
from fastsurf.reconstruction import reconstruct
reconstruct(sys.argv[1], load_config(None, sys.argv[4:]), run=sys.argv[2], go_on=sys.argv[3] == "1")
"""


def command(scene, run, go_on, backend):
    """A reconstruction in its own process, with a checkpoint after every step: a kill lands in a write as often as can be."""
    sets = [*SMALL, f"backend={backend}", "train.save_every=0", "train.preview_every=1000"]
    return [sys.executable, "-P", "-c", SCRIPT, str(scene), str(run), str(int(go_on)), *sets]


@pytest.mark.parametrize("backend, moment", [("reference", 15), ("native", 9)])
def test_a_killed_run_resumes_to_the_same_result(tiny_folder, tmp_path, backend, moment):
    """Bit for bit on both: the native kernels add up in a fixed order."""
    if backend == "native":
        try:
            choose_backend("native")
        except BackendError as e:
            pytest.skip(f"no native library here: {e}")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    subprocess.run(command(tiny_folder, alone, False, backend), check=True)
    process = subprocess.Popen(command(tiny_folder, killed, False, backend))
    checkpoint = killed / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not (checkpoint.exists() and read_header(checkpoint).step >= moment):  # whole at every look
        assert time.monotonic() < deadline
        time.sleep(0.003)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and moment <= read_header(checkpoint).step <= 24
    subprocess.run(command(tiny_folder, killed, True, backend), check=True)
    a, b = (load_file(run / "checkpoint.safetensors") for run in (alone, killed))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert (alone / "mesh.ply").read_bytes() == (killed / "mesh.ply").read_bytes()


def test_a_checkpoint_is_never_a_pickle(tiny, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", training(tiny))
    with safe_open(tmp_path / "c.safetensors", "pt") as f:
        header = json.loads(f.metadata()["fastsurf"])
    assert header["format"] == FORMAT and header["step"] == 0
    assert len(header["levels"]) == 3 and header["levels"][0][1] == 16  # the level table travels along


def test_other_files_are_refused_in_one_line(tiny, tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_header(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not one of fastsurf's"):
        read_header(path)
    save_checkpoint(path, training(tiny))
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        header = json.loads(f.metadata()["fastsurf"])
    save_file(tensors, path, {"fastsurf": json.dumps(header | {"format": FORMAT + 1})})
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this version reads {FORMAT}") as e:
        read_header(path)
    assert "\n" not in str(e.value)
    other = training(tiny, "field.levels=4")
    save_file(tensors, path, {"fastsurf": json.dumps(header)})
    with pytest.raises(CheckpointError, match="does not fit"):
        resume(path, other)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_whole(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]
