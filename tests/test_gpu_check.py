"""The tool that checks CUDA backends, tried on a CPU: what is right passes, what is broken in a known way is found, and named."""

import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsurf.backends import Found, choose_backend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.config import load_config
from fastsurf.metrics import score_mesh

TOOL = Path(__file__).parents[1] / "tools" / "gpu_check.py"
SMALL = ("field.log2_entries=10", "field.levels=4", "train.rays=64", "grid.resolution=24", "mesh.resolution=32", "mesh.min_component=0.05")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(tool, monkeypatch):
    """The tool with a model of a few entries."""
    monkeypatch.setattr(tool, "load_config", lambda name=None, sets=(): load_config(name, [*SMALL, *sets]))
    return tool


class Broken:
    """The reference with some operations replaced."""

    name, note, device = "broken", "", torch.device("cpu")

    def __init__(self, **replaced):
        self.__dict__ |= replaced

    def __getattr__(self, name):
        return getattr(ReferenceBackend(), name)


def raises(*_):
    raise RuntimeError("CUDA error:\n  no kernel image")


def off_by(share):
    """A field whose gradient and whose second output are off by a share."""

    def field(*args):
        out, gradient = ReferenceBackend().field(*args)
        return out * (1 + share), gradient * (1 + share)

    return field


def failures(rows, label):
    """Checks of which a quantity fails for a backend, and the reasons given."""
    found = [(row["check"], row["results"][label]) for row in rows if label in row["results"]]
    return {(check, result.get("reason", "")) for check, result in found if not result.get("ok", True)}


def test_what_is_right_passes_and_every_operation_is_looked_at(small):
    backend = choose_backend("auto")
    rows = list(small.parity({"it exact": backend}, 40, 2))
    assert not any(small.failed(row) for row in rows)
    assert {row["check"] for row in rows} == {*small.COMPARED, *small.COUNTED}
    quantities = {(row["check"], row["quantity"]): row["results"]["it exact"] for row in rows}
    assert len(quantities) == len(rows) > 30
    assert all(r["error"] <= r["tolerance"] <= 2e-3 for r in quantities.values())
    assert quantities["field", "d table by normal"]["error"] > 0  # a number was compared, in another precision
    text = "\n".join(line for row in rows for line in small.lines(row))
    assert "FAIL" not in text and text.count("\n") + 1 == len(rows)


def test_what_is_broken_is_named_and_the_rest_goes_on(small):
    def one_too_few(*args):
        t, count = ReferenceBackend().occupied_steps(*args)
        return t, (count - 1).clamp(min=0)

    backends = {
        "good exact": ReferenceBackend(),
        "bad exact": Broken(mlp=raises, field=off_by(1e-3), occupied_steps=one_too_few),
        "bad fast": Broken(field=off_by(1e-3), encode=lambda *args: ReferenceBackend().encode(*args) * 1.001),
        "worse fast": Broken(field=off_by(2e-2), adam_=lambda *args: None),
    }
    rows = list(small.parity(backends, 40, 1))
    assert failures(rows, "good exact") == set()
    reason = "RuntimeError: CUDA error: no kernel image"
    assert failures(rows, "bad exact") == {("mlp", reason), ("field", ""), ("occupied_steps", ""), ("nothing", reason)}
    assert {check for check, _ in failures(rows, "bad fast")} == {"encode", "encode twice, x", "encode twice, table"}
    assert {check for check, _ in failures(rows, "worse fast")} == {"field", "adam_"}
    assert any("> FAIL" in line for row in rows for line in small.lines(row))


def test_another_shape_or_nan_is_an_infinite_error(tool):
    assert tool.relative_error(torch.ones(3), torch.ones(4).double()) == float("inf")
    assert not tool.verdict(tool.relative_error(torch.tensor([float("nan")]), torch.ones(1).double()), 1.0)["ok"]
    assert json.dumps(tool.plain([{"a": float("nan")}]), allow_nan=False) == '[{"a": "nan"}]'


def test_a_checkpoint_goes_round_and_a_backend_that_reads_it_otherwise_is_found(tool, tiny, tmp_path):
    def shifted(*args):
        return ReferenceBackend().field_value(*args) + 0.05

    backends = {"reference exact": choose_backend("auto"), "bad exact": Broken(field_value=shifted), "lost exact": Broken(adam_=raises)}
    sets = ("train.steps=12", *SMALL)
    rows = list(tool.trips(backends, tiny, tmp_path, sets, 8))
    found = {(row["from"], row["to"]): row for row in rows if "to" in row}
    assert [row["what"] for row in rows if "to" not in row] == ["lost exact"]  # it can't train
    bad = found["bad exact", "bad exact"]
    assert bad["ok"] and bad["level"]["error"] == 0 and len(bad["resumed"]["losses"]) == 3
    good = found["bad exact", "reference exact"]
    assert not good["ok"] and not good["level"]["ok"] and not good["mesh"]["ok"] and good["resumed"]["ok"]
    lost = found["bad exact", "lost exact"]
    assert lost["level"]["error"] > 0 and not lost["ok"] and "no kernel image" in lost["reason"]


def test_every_phase_is_timed_and_one_that_fails_is_left_out(tool, tiny):
    backends = {"good exact": choose_backend("auto"), "bad exact": Broken(mlp=raises)}
    machine, trained, *rest = tool.speed(backends, tiny, [9], 3, 4, SMALL)
    assert machine["copy_gb_s"] > 0.1 and trained["steps"] == 4
    assert [row["phase"] for row in rest] == list(tool.PHASES)
    for row in rest:
        assert row["ms"]["good exact"] > 0 and row["samples"] == 21 * 24 and row["repeats"] == 3
        assert ("bad exact" in row["ms"]) != (row["phase"] in ("mlp + backward", "step")) == ("bad exact" in row["reasons"])
    assert 0 < rest[-1]["evaluated"]["good exact"] <= 3 * 21 * 24
    text = tool.speed_lines(rest[-1])
    assert any("samples placed" in line for line in text) and any("no kernel image" in line for line in text)


def test_a_profile_names_what_takes_time(tool, tiny, monkeypatch):
    monkeypatch.setattr(tool, "WARM_STEPS", 4)
    (row,) = tool.profile({"it exact": choose_backend("auto")}, tiny, SMALL, 2)
    assert row["wall_ms"] > 0 and row["busy_ms"] > 0 and 5 < len(row["top"]) <= 25
    assert row["top"] == sorted(row["top"], key=lambda e: -e["ms"])
    assert len(tool.lines(row)) == 1 + len(row["top"])


def test_without_a_gpu_one_line_says_what_is_wanted(tool, monkeypatch, capsys):
    found = [Found("cuda", False, "no NVIDIA GPU:\n use native"), Found("triton", False, "no GPU"), Found("native", True, "AVX2")]
    monkeypatch.setattr(tool, "survey", lambda: found)
    assert tool.main([]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err == "" and "wants a GPU" in out and "cuda: no NVIDIA GPU: use native" in out
    assert tool.main(["--backends", "triton,tpu"]) == 1
    assert "tpu: no such backend" in capsys.readouterr().out


def test_the_report_is_written_and_what_ends_early_fails(tool, tmp_path, capfd):
    file = tmp_path / "report.json"
    words = ["--backends", "reference", "--points", "4", "--seeds", "1", "--json", str(file), "--scene", str(tmp_path / "no such")]
    assert tool.main([*words, "--only", "parity,speed"]) == 1
    report = json.loads(file.read_text())
    assert report["machine"]["torch"] == torch.__version__ and report["seconds"]["parity"] > 0
    assert [f["name"] for f in report["survey"]] == ["triton", "cuda", "native", "reference"]
    *rows, last = report["rows"]
    assert len(rows) > 30 and {row["part"] for row in rows} == {"parity"} and not any(tool.failed(row) for row in rows)
    assert not report["ok"] and last == tool.trouble("speed", "reference", "the process ended with 1")
    assert "1 rows FAIL" in capfd.readouterr().out


def test_scenes_are_made_by_the_command_and_scored(tool, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "score_mesh", lambda mesh, truth, views: score_mesh(mesh, replace(truth, mesh=None), samples=5000))
    words = " ".join(f"--set {s}" for s in (*SMALL, "train.steps=10")).split()
    names = [(choose_backend("auto").name, "exact"), ("tpu", "exact")]
    rows = list(tool.scenes(names, tiny_folder, tmp_path, words, time.monotonic() + 300))
    assert rows[0]["steps"] == 10 and set(rows[0]["phases_s"]) == {"read", "train", "mesh"}
    assert rows[0]["wall_s"] > sum(rows[0]["phases_s"].values()) > 0
    assert 0 < rows[0]["score"]["f_score"] < 1 and "F 1 %" in tool.lines(rows[0])[0]
    assert not rows[1]["ok"] and "--backend wants" in rows[1]["reason"]
    (late,) = tool.scenes([("native", "exact")], tiny_folder, tmp_path, words, 0.0)
    assert late["reason"] == "no time left" and not tool.failed(late)
