import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fastsurf
from fastsurf.config import Config, load_config
from fastsurf.estimates import PRESETS, Estimate, estimate, megabytes, memory

RUN = """
import json, sys, tempfile
from fastsurf.config import load_config
from fastsurf.reconstruction import reconstruct
with tempfile.TemporaryDirectory() as folder:
    reconstruct(sys.argv[1], load_config("quick", ["train.minutes=none", "train.steps=20", "threads=2", "mesh.resolution=128"]), run=folder)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage's is that of whoever started it, if more
print(json.dumps(int(peak.split()[1]) * 1024 / 1e6))
"""


def test_each_preset_has_its_own_minutes(tiny):
    found = estimate(tiny)
    assert [e.preset for e in found] == list(PRESETS)
    assert {e.preset: e.minutes for e in found} == {"default": 3.0, "quick": 0.5, "object": 5.0, "scene": 5.0}
    assert found[1].megabytes < found[0].megabytes


def test_photographs_and_table_are_counted(tiny):
    small, large = (replace(Config(), field=replace(Config().field, log2_entries=n)) for n in (12, 20))
    assert megabytes(tiny, large) - megabytes(tiny, small) > 100
    assert megabytes(tiny, load_config("quick")) > 400


def test_too_much_for_this_machine_is_doubtful():
    assert memory([Estimate("default", 3.0, 10)]) == []
    (found,) = memory([Estimate("default", 3.0, 10), Estimate("scene", 5.0, 10**8)])
    assert found.severity == "doubtful" and "100000.0 GB" in found.found and "max_side" in found.fix


@pytest.mark.skipif(sys.platform != "linux", reason="the rates were measured on Linux")
def test_a_short_run_takes_about_as_much_as_was_said(tiny, tiny_folder):
    from fastsurf.backends import survey

    if not next(f for f in survey() if f.name == "native").usable:
        pytest.skip("the rates are those of the native backend")
    path = str(Path(fastsurf.__file__).parents[1])
    said = subprocess.run([sys.executable, "-c", RUN, str(tiny_folder)], capture_output=True, text=True, check=True, cwd=path).stdout
    assert json.loads(said) == pytest.approx(megabytes(tiny, load_config("quick")), rel=0.3)
