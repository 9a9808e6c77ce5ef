"""The time left, against runs as they were."""

import importlib.util
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_events import fake_step
from test_checkpoint import SMALL

from fastsurf import reconstruction
from fastsurf.config import SamplingConfig, load_config
from fastsurf.forecast import EXTRA, Forecast
from fastsurf.hooks import PhaseDone, PhaseStarted, Saved, TrainState
from fastsurf.sampling import decay
from fastsurf.ui.jsonlines import JsonLines

TOOL = Path(__file__).parents[1] / "tools" / "benchmark.py"
DECAY = decay(SamplingConfig())

RECORDED = {  # seconds that each twentieth of the steps took, on two cores that others used as well
    "dtu65": (9.16, 7.18, 5.95, 6.32, 5.63, 5.8, 6.82, 6.61, 7.36, 5.7, 5.16, 4.99, 5.48, 6.58, 5.87, 4.97, 5.05, 4.95, 5.09, 5.33),
    "object": (3.87, 2.59, 2.29, 2.03, 1.98, 2.0, 1.95, 2.0, 2.07, 2.26, 2.36, 2.17, 2.21, 2.12, 2.25, 2.36, 2.24, 2.22, 2.24, 2.22),
    "smooth off": (4.35, 3.13, 3.69, 3.28, 2.75, 2.67, 2.58, 2.66, 2.3, 2.33, 3.2, 2.8, 2.53, 2.4, 2.49, 2.32, 2.4, 2.71, 2.84, 2.92),
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("steps", [24, 1500])
def test_the_time_left_is_right_within_a_fifth_after_a_tenth(name, steps):
    ends = np.interp(np.arange(1, steps + 1) / steps, np.arange(21) / 20, [0, *np.cumsum(RECORDED[name])])
    forecast = Forecast(DECAY)
    forecast(0.0, 0.0)
    told = np.array([forecast(k / steps, end) for k, end in enumerate(ends[:-1], 1)])
    wrong = told / (ends[-1] - ends[:-1]) - 1.0
    late = np.arange(1, steps) >= 0.1 * steps
    assert np.abs(wrong[late]).max() < 0.25 and np.mean(np.abs(wrong[late]) < 0.2) > 0.7
    by_the_mean = ends[:-1] * (steps - np.arange(1, steps)) / np.arange(1, steps) / (ends[-1] - ends[:-1]) - 1.0
    assert np.abs(wrong[late]).max() < np.abs(by_the_mean[late]).max()


def test_a_resumed_run_is_forecast_from_what_it_does_now():
    """The seconds before were another machine's."""
    forecast = Forecast(DECAY)
    assert forecast(0.5, 1000.0) == math.inf
    for k in range(1, 400):
        left = forecast(0.5 + k / 1000, 1000.0 + 0.01 * k)
    assert left == pytest.approx(1.01, rel=0.05)
    assert forecast(1.0, 1005.0) == 0.0


def test_a_run_that_has_just_begun_knows_nothing():
    forecast = Forecast(DECAY)
    assert forecast(0.0, 0.0) == math.inf and 0 < forecast(0.001, 0.1) < 200


def test_a_mesh_on_the_way_is_no_part_of_the_pace(tiny_folder, tmp_path, monkeypatch):
    """Its time is known apart, so that what is left is told by the steps alone."""
    runs = []

    class Watched(reconstruction.Training):
        def __init__(self, *args):
            super().__init__(*args)
            runs.append(self)

    monkeypatch.setattr(reconstruction, "Training", Watched)
    told = []
    reconstruction.reconstruct(tiny_folder, load_config(None, SMALL), run=tmp_path / "r", hooks=[told.append])
    steps = [e for e in told if isinstance(e, TrainState)]
    longest = max(b.seconds - a.seconds for a, b in itertools.pairwise(steps))
    assert 0 < runs[0].aside <= longest


def test_the_tool_forecasts_from_logs(tmp_path):
    """A hundred steps of a second after the interval's own pace, with a mesh that takes as long as sixty of them half-way."""
    for name, mesh in (("plain", 0.0), ("meshed", 60.0)):
        (tmp_path / name).mkdir()
        lines = JsonLines(tmp_path / name / "log.jsonl", every=0.0)
        lines(PhaseStarted("train"))
        for event in paced(100, mesh):
            lines(event)
        lines.close()
        (tmp_path / name / "config.toml").write_text("train.steps = 100\n")
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.forecasts([tmp_path / "plain"]) == {"steps: runs": 1.0, "steps: median": 1.0, "steps: mean": 1.0}
    told = tool.seconds_left(tmp_path / "meshed", load_config(None, ["train.steps=100"]))
    assert tool.forecasts([tmp_path / "plain", tmp_path / "meshed"])["steps: mean"] < 1.0, "nobody knew of the mesh before"
    after = [left / true for left, true in told if 2.0 < true < 50.0]
    assert len(after) > 40 and np.abs(np.array(after) - 1).max() < 0.05
    resumed = (tmp_path / "plain/log.jsonl").read_bytes()
    (tmp_path / "plain/log.jsonl").write_bytes(resumed + resumed)
    assert tool.forecasts([tmp_path / "plain"]) == {}


def paced(steps, mesh):
    """Events of steps that take 1 + EXTRA exp(-DECAY progress) seconds each, and `mesh` seconds for a mesh half-way."""
    seconds = 0.0
    yield PhaseDone("read", 1.0, "")
    for step in range(1, steps + 1):
        seconds += 1.0 + EXTRA * math.exp(-DECAY * (step - 0.5) / steps)
        yield replace(fake_step(step, step / steps), seconds=seconds)
        if step == steps // 2 and mesh:
            seconds += mesh
            yield Saved("first mesh", Path("first_mesh.ply"))
