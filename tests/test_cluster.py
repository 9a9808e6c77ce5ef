"""Scenes on a Ray cluster of two workers, one of which is killed; skipped where Ray isn't installed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_batch import CONFIG, wait_for
from test_cli import PACKAGE, TINY, fails

from fastsurf.batch import Job, read_summary
from fastsurf.cluster import Board, on_ray, share
from fastsurf.errors import BackendError, UsageError
from fastsurf.hooks import SceneState, TrainState
from fastsurf.meshio import read_mesh
from fastsurf.ui.jsonlines import read_event

HERE = Path(__file__).parent
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'fastsurf[ray]'")


def test_the_board_gives_each_news_once():
    board, news = Board(), [SceneState("a", "read"), SceneState("a", "train")]
    for state in news:
        board.tell(state)
    assert board.news() == news and board.news() == [] and not board.finishing()
    board.finish()
    assert board.finishing()


def test_machines_are_shared_out(tmp_path):
    def job(backend):
        return Job("a", tmp_path, tmp_path, replace(CONFIG, backend=backend), None, "")

    plain, gpus = {"CPU": 8.0, "memory": 1.0}, {"CPU": 64.0, "GPU": 4.0}
    assert share([plain, {"CPU": 0.0}], [job("auto")], 1, 0) == (8, 0)
    assert share([plain, plain], [job("auto")], 3, 0) == (2, 0) and share([plain], [job("native")], 9, 0) == (1, 0)
    assert share([plain, gpus], [job("auto")], 1, 0) == (16, 1) and share([plain, gpus], [job("native")], 1, 0) == (8, 0)
    assert share([plain, gpus], [job("cuda")], 1, 6) == (6, 1)
    with pytest.raises(BackendError, match="no machine of the cluster has a GPU"):
        share([plain], [job("triton")], 1, 0)
    with pytest.raises(BackendError, match="a CPU"):
        share([{"CPU": 0.0}], [job("auto")], 1, 0)
    with pytest.raises(UsageError, match="at most 8"):
        share([plain], [job("auto")], 1, 9)


def test_no_cluster_is_asked_where_nothing_is_left_to_make(monkeypatch):
    monkeypatch.setattr("fastsurf.cluster.load_ray", lambda: None)
    assert list(on_ray("nowhere:1")([], lambda: False)) == []


def test_without_ray_one_line_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(capsys, 2, r"pip install 'fastsurf\[ray\]'", "batch", tmp_path, "-o", tmp_path / "out", "--ray", "auto")


@pytest.fixture()
def cluster():
    """A cluster's process: its address and the ids of its two workers were its first line."""
    process = subprocess.Popen([sys.executable, HERE / "ray_cluster.py"], env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    yield process
    process.communicate(timeout=60)


@needs_ray
def test_a_scene_whose_worker_is_killed_goes_on_at_another(cluster, tiny_folder, tmp_path):
    address, victim, _ = cluster.stdout.readline().split()
    scenes, out = [tmp_path / name for name in ("a", "b")], tmp_path / "out"
    for scene in scenes:
        shutil.copytree(tiny_folder, scene, ignore=shutil.ignore_patterns("gt"))
    words = ["batch", *scenes, "-o", out, "--ray", address, "--json", "-", *TINY, "--steps", "120", "--set", "train.save_every=0.2"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "fastsurf", *map(str, words)], env=os.environ | {"PYTHONPATH": PACKAGE},
                                   stdout=subprocess.PIPE, stderr=stderr, text=True)  # fmt: skip
    checkpoints = [out / f"{name}.run" / "checkpoint.safetensors" for name in ("a", "b")]
    wait_for(lambda: process.poll() is not None or all(path.exists() for path in checkpoints))
    assert process.poll() is None, (tmp_path / "stderr").read_text()
    cluster.stdin.write(victim + "\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "killed\n"
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    assert [(row.name, row.state, row.steps) for row in read_summary(out)] == [("a", "done", 120), ("b", "done", 120)]
    starts = [event["name"] for line in said.splitlines() if (event := json.loads(line)).get("state") == "starting"]
    assert len(starts) == 3 and set(starts) == {"a", "b"}, "one of them was begun twice"
    one, other = (read_mesh(out / f"{name}.ply") for name in ("a", "b"))
    np.testing.assert_array_equal(one.vertices, other.vertices)
    log = (out / "a.run" / "log.jsonl").read_text() + (out / "b.run" / "log.jsonl").read_text()
    first = [event.step for line in log.splitlines() if isinstance(event := read_event(line), TrainState)]
    assert first.count(1) == 2, "what was begun again went on from its checkpoint"
