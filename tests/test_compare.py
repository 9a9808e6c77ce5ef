"""Several methods, one table: what is run, kept, refused, scored and written; one that fails is a line, not the end."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_checkpoint import SMALL
from test_cli import PACKAGE, fails, run

from fastsurf import cli
from fastsurf import compare as module
from fastsurf.child import ChildError
from fastsurf.compare import Contender, compare, summary
from fastsurf.config import Config, load_config
from fastsurf.errors import FastsurfError, SceneError, UsageError
from fastsurf.hooks import MeshProgress, Note, PhaseDone, PhaseStarted, TrainState
from fastsurf.mesh import Mesh
from fastsurf.meshio import read_mesh, write_mesh
from fastsurf.metrics import measure, read_thresholds
from fastsurf.solidity import simplify

TINY = [word for setting in SMALL for word in ("--set", setting)] + ["--threads", "1"]
SAMPLES = 5_000


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsurf.scoring.measure", lambda mesh, truth, views, samples: measure(mesh, truth, views, SAMPLES))
        patch.setattr("fastsurf.metrics._TRUE_SAMPLES", SAMPLES)
        yield


@pytest.fixture(scope="module")
def scene(tiny_folder, tmp_path_factory):
    """The small scene, its truth reduced to a mesh of a few faces."""
    folder = tmp_path_factory.mktemp("compared") / "scene"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("gt"))
    whole = read_mesh(tiny_folder / "gt" / "mesh.ply")
    vertices, faces = simplify(whole.vertices, whole.faces, 20_000)
    write_mesh(folder / "gt" / "mesh.ply", Mesh(vertices, faces, np.zeros(vertices.shape, np.float32)))
    return folder


@pytest.fixture(scope="module")
def made(scene, tmp_path_factory):
    """A comparison by the command: its folder, what it said, and its words."""
    out = tmp_path_factory.mktemp("compare") / "out"
    words = ["compare", scene, "--methods", "unisurf,colmap", "--mesh", scene / "gt" / "mesh.ply", "-o", out, *TINY]
    words += ["--thresholds", "1%,0.5"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as complaints:
        assert cli.main([str(word) for word in words]) == 0
    assert complaints.getvalue() == ""
    return out, said.getvalue(), words


def rows_of(out: Path) -> dict:
    return {row["method"]: row for row in json.loads((out / "compare.json").read_text())["rows"]}


def test_the_table_and_the_picture_hold_every_row(made):
    out, said, _ = made
    rows = rows_of(out)
    ours, theirs = rows["unisurf"]["scores"], rows["colmap"]["scores"]
    assert ours["steps"] == 24 and ours["wall_seconds"] > ours["train_seconds"] > 0 and ours["faces"] > 0 and 5 < ours["psnr"] < 40
    assert theirs["f_score_05"] == 1 and theirs["chamfer_pct"] < 0.01 < ours["chamfer_pct"]
    assert theirs["watertight"] and "psnr" not in theirs
    assert theirs["sweep"][0]["percent"] == pytest.approx(1) and theirs["sweep"][1]["threshold"] == 0.5
    table = (out / "compare.md").read_text()
    head = "| method | Chamfer % | F@0.5 % | F@1 % | normals ° | PSNR | SSIM | wall s | steps | faces | watertight | mesh |"
    assert head in table and "24 steps for each method" in table and f"| {ours['psnr']:.2f} |" in table
    assert (out / "unisurf" / "run" / "mesh.ply").is_file() and "| unisurf/run/mesh.ply |" in table
    assert "| unisurf | " in table and f"| colmap | {theirs['diagonal'] / 100:.4g} | 1 | 1.0000 | 1.0000 | 1.0000 |" in table
    picture = np.asarray(Image.open(out / "compare.png"))
    kept = [np.asarray(Image.open(out / "unisurf" / "pictures" / f"{name}.png")) for name in module.PICTURES]
    assert all(p.shape == (48, 48, 3) for p in kept) and picture.shape[0] > 2 * 48 and picture.shape[1] >= 5 * 48
    for k, part in enumerate(kept):  # below two lines of text, side by side
        np.testing.assert_array_equal(picture[44:92, 54 * k : 54 * k + 48], part)
    lines = said.splitlines()
    assert any(line.startswith("unisurf done in ") and "Chamfer" in line for line in lines)
    shown = lines[next(k for k, line in enumerate(lines) if line.split() == ["unisurf", "colmap"]) :]
    assert max(map(len, shown)) <= 80 and ["psnr", f"{ours['psnr']:.2f}", "–"] in [line.lower().split() for line in shown]
    assert f"F1@{0.5:.3g}".lower() in [line.lower().split()[0] for line in shown] and str(out / "compare.md") in lines[-2]


def test_the_same_command_keeps_what_is_finished(made, capsys):
    out, _, words = made
    before = (out / "unisurf" / "made.json").read_bytes(), (out / "unisurf" / "run" / "mesh.ply").stat().st_mtime_ns
    scores = rows_of(out)["unisurf"]["scores"]
    code, said, _ = run(capsys, *words)
    assert code == 0 and "unisurf: kept" in said
    assert before == ((out / "unisurf" / "made.json").read_bytes(), (out / "unisurf" / "run" / "mesh.ply").stat().st_mtime_ns)
    again = rows_of(out)["unisurf"]["scores"]
    assert {k: again[k] for k in ("psnr", "wall_seconds", "faces")} == {k: scores[k] for k in ("psnr", "wall_seconds", "faces")}


def test_other_settings_replace_nothing_unasked(made, capsys):
    out, _, words = made
    mesh = (out / "unisurf" / "run" / "mesh.ply").read_bytes()
    fails(capsys, 2, r"other settings \(train.steps 24, now 12\): --force", *words, "--steps", "12", "--quiet")
    assert (out / "unisurf" / "run" / "mesh.ply").read_bytes() == mesh


@pytest.fixture()
def copied(made, monkeypatch):
    """Children that copy the run of the fixture instead of making one, and fail where asked; the names they were asked for."""
    asked = []
    fate: dict[str, BaseException] = {}

    def child(words, log, what, on_line):
        name = log.parent.name
        asked.append(name)
        if name in fate:
            raise fate[name]
        on_line('{"event": "note", "time": 1, "text": "a remark"}\n')
        on_line('{"event": "phase", "time": 1, "name": "mesh", "detail": ""}\n')
        on_line("words that are no event\n")
        shutil.copytree(made[0] / "unisurf" / "run", log.parent / "run")
        return {"wall_seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 100.0}

    monkeypatch.setattr(module, "run_python", child)
    return asked, fate


def small(*sets: str) -> Config:
    config = load_config(None, [*SMALL, "threads=1", *sets])
    return replace(config, scene=replace(config.scene, holdout=8))


def test_one_that_fails_is_a_line_and_is_tried_again(copied, scene, tmp_path):
    asked, fate = copied
    fate["bad"] = ChildError("the reconstruction ended with exit code 3: fastsurf: no | surface")
    events = []
    contenders = [Contender("bad", small("train.seed=1")), Contender("good", small())]
    given = [Contender("colmap"), Contender("m.ply", mesh=tmp_path)]
    rows = compare(scene, [*contenders, *given], tmp_path / "out", hooks=[events.append])
    assert [(row.name, row.failed, bool(row.scores)) for row in rows] == [
        ("bad", True, False), ("good", False, True), ("colmap", False, False), ("m.ply", True, False)
    ]  # fmt: skip
    assert "exit code 3" in rows[0].note and "--mesh FILE" in rows[2].note and "no such file" in rows[3].note
    table = (tmp_path / "out" / "compare.md").read_text()
    assert "- bad: failed: the reconstruction ended with exit code 3" in table and "- colmap: no mesh" in table
    text = "\n".join(summary(rows))
    assert "bad: failed" in text and "good" in text.splitlines()[0]
    starts = [e.name for e in events if isinstance(e, PhaseStarted)]
    assert starts == [e.name for e in events if isinstance(e, PhaseDone)] == ["bad", "good", "colmap", "m.ply"]
    assert Note("good: a remark") in events and MeshProgress(0.0, "mesh") in events and not any(isinstance(e, TrainState) for e in events)

    fate.clear()
    rows = compare(scene, contenders, tmp_path / "out")
    assert asked == ["bad", "good", "bad"] and not any(row.failed for row in rows) and len(rows_of(tmp_path / "out")) == 2


def test_a_run_that_was_stopped_is_made_again_and_the_rest_kept(copied, scene, tmp_path):
    asked, fate = copied
    fate["b"] = KeyboardInterrupt()
    contenders = [Contender("a", small()), Contender("b", small("train.seed=1"))]
    with pytest.raises(KeyboardInterrupt):
        compare(scene, contenders, tmp_path)
    assert set(rows_of(tmp_path)) == {"a"}  # the report of what there is
    fate.clear()
    assert [row.failed for row in compare(scene, contenders, tmp_path)] == [False, False] and asked == ["a", "b", "b"]
    forced = [Contender("a", small("train.seed=7"))]
    with pytest.raises(UsageError, match=r"train.seed 0, now 7"):
        compare(scene, forced, tmp_path)
    compare(scene, forced, tmp_path, force=True)
    assert asked == ["a", "b", "b", "a"]


def test_without_a_truth_pictures_alone_are_scored(copied, scene, tmp_path):
    bare = tmp_path / "scene"
    shutil.copytree(scene, bare, ignore=shutil.ignore_patterns("gt"))
    (row,) = compare(bare, [Contender("a", small())], tmp_path / "out", thresholds=read_thresholds("1%"))
    assert "chamfer" not in row.scores and "sweep" not in row.scores and row.scores["psnr"] > 5
    assert set(row.pictures) == set(module.PICTURES) - {"error"}
    heads, _ = module.table_cells([row])
    assert heads == ["method", "PSNR", "SSIM", "wall s", "steps", "faces", "watertight"]
    assert "Precision" not in (tmp_path / "out" / "compare.md").read_text()


def test_what_cannot_be_compared_is_said_before_anything_runs(copied, scene, tmp_path):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "diary.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="no part of a comparison"):
            compare(scene, [Contender("a", small())], tmp_path / "out", force=force)
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(scene, [], tmp_path / "out")
    with pytest.raises(SceneError):
        compare(tmp_path / "out", [Contender("b", small())], tmp_path / "out")
    with pytest.raises(FastsurfError, match="no ground truth"):
        compare(scene, [Contender("b", small())], tmp_path / "out", truth=tmp_path / "none.ply")
    assert copied[0] == [] and (tmp_path / "out" / "a" / "diary.txt").read_text() == "mine"


def test_exit_codes(copied, scene, capsys, tmp_path):
    _, fate = copied
    words = ["compare", scene, "-o", tmp_path / "out", *TINY]
    code, out, err = run(capsys, *words, "--methods", "colmap")
    assert (code, err) == (0, "") and "colmap: no mesh" in out
    fate["unisurf"] = ChildError("it broke")
    code, out, err = run(capsys, *words, "--methods", "unisurf,colmap")
    assert code == 1 and "unisurf: failed: it broke" in out
    fate["unisurf"] = KeyboardInterrupt()
    err = fails(capsys, cli.STOPPED, "stays in", *words, "--methods", "unisurf", "--quiet")
    assert str(tmp_path / "out") in err


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child in /proc, which Linux alone has")
def test_ctrl_c_ends_the_child_too(scene, tmp_path):
    words = ["-m", "fastsurf", "compare", scene, "--methods", "unisurf", "-o", tmp_path / "out", *TINY, "--steps", "100000"]
    p = subprocess.Popen([sys.executable, *map(str, words)], env=os.environ | {"PYTHONPATH": PACKAGE}, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert p.stdout is not None
    line = ""
    while "step " not in line:
        line = p.stdout.readline()
        assert line, p.communicate()
    (child,) = map(int, Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split())
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err.count("\n") == 1 and "the same command goes on" in err
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not (tmp_path / "out" / "unisurf" / "made.json").exists()
