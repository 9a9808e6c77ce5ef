"""kill -9 in each phase: nothing half under a final name, and the run goes on to the same bits."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import PACKAGE

TOOL = Path(__file__).parents[1] / "tools" / "faults.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_run_leaves_nothing_half_and_goes_on_to_the_same_bits(tmp_path):
    p = subprocess.run(
        [sys.executable, str(TOOL), "--kills", "5", "--seed", "1", "-o", str(tmp_path)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert p.returncode == 0 and p.stdout.endswith("nothing was wrong\n"), p.stdout + p.stderr
    rows = {row[0]: row[1:] for row in (line.split() for line in p.stdout.splitlines()[1:-1])}
    assert set(rows) == {"read", "train", "checkpoint", "mesh", "export"} and all(row[0] == "1" and row[3] == "0" for row in rows.values())
    assert rows["mesh"][1] == rows["export"][1] == "1"  # a checkpoint is there before the mesh is begun
    assert not re.findall("kill_", " ".join(os.listdir(tmp_path)))
