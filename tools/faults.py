#!/usr/bin/env python3
"""What a reconstruction that is killed leaves behind: kill -9 at random moments, then look at every file, go on, and compare.

    python tools/faults.py [--kills 100] [--seed 0] [--backend auto] [-o DIR]

A tiny scene is reconstructed once undisturbed, then killed again and again, in turn while it reads, trains, writes a checkpoint, makes the
mesh, and writes it. Each time: every file under a final name is whole; the checkpoint is no older than the last one that was announced; the
run goes on (or starts again, where nothing was saved) and ends with the same bits; and nothing of the killed process is left in the folder.

Runs are forked from this process, which has loaded the libraries once. Exit code: 0, 1 where something was wrong. Not for Windows.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from fastsurf import cli
from fastsurf.demo_scene import make_scene
from fastsurf.errors import FastsurfError
from fastsurf.meshio import read_mesh

PHASES = ("read", "train", "checkpoint", "mesh", "export")
SETTINGS = (
    "train.steps=30", "train.rays=64", "grid.resolution=16", "grid.steps=64", "grid.update_every=4", "field.levels=3",
    "field.log2_entries=10", "field.finest_resolution=40", "field.width=16", "color.width=16", "sampling.front=2", "sampling.interval=4",
    "mesh.resolution=64", "train.save_every=0.02", "train.preview_every=0.05",
)  # fmt: skip
PATIENCE = 120.0  # seconds, for a run to end
Event = dict[str, Any]


class Run:
    """One reconstruction in a process of its own, and what it tells."""

    def __init__(self, scene: Path, folder: Path, backend: str) -> None:
        self.folder, self.out = folder / "run", folder / "mesh.obj"
        again = ["--resume"] if (self.folder / "checkpoint.safetensors").exists() else ["--force"]
        sets = [word for setting in SETTINGS for word in ("--set", setting)]
        words = [str(scene), "-o", str(self.out), "--run", str(self.folder), "--json", "-", "--quiet", "--threads", "1"]
        folder.mkdir(exist_ok=True)
        reading, writing = os.pipe()
        self.process = os.fork()
        if not self.process:
            code = 1
            with contextlib.suppress(BaseException):
                sys.stdout, sys.stderr = os.fdopen(writing, "w"), (folder / "stderr.txt").open("w")
                code = cli.main(["reconstruct", *words, "--backend", backend, *again, *sets])
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        os.close(writing)
        self._pipe, self._rest, self._ended, self.events = reading, b"", False, list[Event]()

    def follow(self, seconds: float) -> Iterator[Event]:
        """What is told within so many seconds, until the run ends."""
        end = time.monotonic() + seconds
        while select.select([self._pipe], [], [], max(end - time.monotonic(), 0.0))[0]:
            data = os.read(self._pipe, 1 << 16)
            if not data:
                self._ended = True
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            told = [json.loads(line) | {"at": time.monotonic()} for line in lines]
            self.events += told  # all of them, wherever whoever follows leaves off
            yield from told

    def kill(self) -> None:
        """At once; what it had told until then is read."""
        os.kill(self.process, signal.SIGKILL)
        for _ in self.follow(PATIENCE):
            pass
        self._wait()

    def finish(self) -> None:
        """Wait for a good end, and no longer than PATIENCE.

        Raises:
            RuntimeError: it was none.
        """
        for _ in self.follow(PATIENCE):
            pass
        if not self._ended:
            os.kill(self.process, signal.SIGKILL)
        code = self._wait()
        if code:
            raise RuntimeError(f"the run ended with exit code {code}: {(self.folder.parent / 'stderr.txt').read_text().strip()}")

    def _wait(self) -> int:
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def announced(self) -> int:
        """Whether a checkpoint was; the last step told before it, else -1."""
        last, step = -1, 0
        for event in self.events:
            step = event["step"] if event["event"] == "step" else step
            last = step if event["event"] == "saved" and event["what"] == "checkpoint" else last
        return last


def spans(events: list[Event]) -> dict[str, float]:
    """Seconds that reading, training and meshing took."""
    starts = {e["name"]: e["at"] for e in events if e["event"] == "phase"}
    return {e["name"]: e["at"] - starts[e["name"]] for e in events if e["event"] == "phase_done"}


def wait_until(run: Run, phase: str, seconds: dict[str, float], chance: random.Random) -> None:
    """Return at a random moment of a phase."""
    within = {"checkpoint": "train", "export": "mesh"}.get(phase, phase)
    for event in run.follow(PATIENCE):
        if event["event"] == "phase" and event["name"] == within:
            break
    if phase == within:
        delay = chance.uniform(0.0, seconds[phase])
    else:  # some of the writes of this file are passed over, then part of one
        pattern, most = {"checkpoint": (".checkpoint.safetensors.*.part", 8), "export": (".mesh.*.part", 2)}[phase]
        writes = chance.randrange(most)
        end, there = time.monotonic() + 3.0 * seconds[within], False
        while time.monotonic() < end and writes >= 0:
            now = any(True for folder in (run.folder, run.folder.parent) for _ in folder.glob(pattern))
            writes -= now and not there
            there = now
        delay = chance.uniform(0.0, 0.004)
    for _ in run.follow(delay):
        pass


def flaws(folder: Path) -> list[str]:
    """Files under a final name that can't be read."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix in (".ply", ".obj"):
                read_mesh(path)
            elif path.suffix == ".png":
                from PIL import Image

                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (SafetensorError, FastsurfError, OSError, ValueError) as e:
            found.append(f"{path.name}: {e}")
    return found


def differences(folder: Path, whole: Path) -> list[str]:
    """Between what two runs ended with."""
    a, b = (load_file(f / "run" / "checkpoint.safetensors") for f in (folder, whole))
    found = [name for name in a.keys() | b.keys() if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()]
    return found + [name for name in ("run/mesh.ply", "mesh.obj") if (folder / name).read_bytes() != (whole / name).read_bytes()]


def try_once(
    scene: Path, folder: Path, whole: Path, backend: str, phase: str, seconds: dict[str, float], chance: random.Random
) -> tuple[int, int, list[str]]:
    """Kill one run in a phase and go on with it; the steps that it had saved and that were lost, and what was wrong."""
    run = Run(scene, folder, backend)
    wait_until(run, phase, seconds, chance)
    run.kill()
    wrong = flaws(folder)
    path = folder / "run" / "checkpoint.safetensors"
    made = max((e["step"] for e in run.events if e["event"] == "step"), default=0)
    saved = 0
    if path.exists():
        from fastsurf.checkpoint import read_header

        saved = read_header(path).step
    if saved < run.announced():
        wrong.append(f"a checkpoint after step {run.announced()} was announced, and there is one of {saved}")
    again = Run(scene, folder, backend)
    try:
        again.finish()
        wrong += flaws(folder) + differences(folder, whole)
    except (RuntimeError, OSError) as e:
        wrong.append(str(e))
    wrong += [f"{p.name} is left" for p in folder.rglob("*") if p.name.endswith(".part") or p.name == "lock"]
    return saved, max(made - saved, 0), wrong


def trial(out: Path, kills: int, seed: int, backend: str) -> list[str]:
    """All of it; prints the table and returns what was wrong."""
    scene, chance = out / "scene", random.Random(seed)
    make_scene(scene, views=8, test=0, size=40)
    first = Run(scene, out / "whole", backend)
    first.finish()
    seconds, wrong = spans(first.events), list[str]()
    rows: dict[str, list[tuple[int, int, list[str]]]] = collections.defaultdict(list)
    for k in range(kills):
        phase, folder = PHASES[k % len(PHASES)], out / f"kill_{k:03}"
        rows[phase].append(try_once(scene, folder, out / "whole", backend, phase, seconds, chance))
        wrong += [f"{folder.name} ({phase}): {text}" for text in rows[phase][-1][2]]
        if not rows[phase][-1][2]:
            shutil.rmtree(folder)
    print(f"{'killed in':<12}{'times':>6}{'had saved':>11}{'steps lost, most':>18}{'wrong':>7}")
    for phase, found in rows.items():
        had, lost, bad = sum(s > 0 for s, _, _ in found), max(steps for _, steps, _ in found), sum(bool(w) for _, _, w in found)
        print(f"{phase:<12}{len(found):>6}{had:>11}{lost:>18}{bad:>7}")
    return wrong


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("-o", "--out", type=Path, help="kept; a temporary folder if not given")
    args = parser.parse_args()
    if not hasattr(os, "fork") or args.kills < 1:
        print("faults: wants a system with fork, and --kills of 1 or more", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        wrong = trial(args.out or Path(temporary), args.kills, args.seed, args.backend)
    print("\n".join(wrong) if wrong else "nothing was wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
