#!/usr/bin/env python3
"""How fast the native backend is against the PyTorch reference, on this machine and in one run.

    python tools/benchmark.py [--rays 1024] [--repeats 7] [--threads 0]

Candidates take turns, so that other load hits them alike; medians and their ratios are printed. Ratios carry over, times don't. Each
phase of a training step is timed on a small made scene after some training, and then the whole step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastsurf.backends import choose_backend
from fastsurf.config import load_config
from fastsurf.demo_scene import make_scene
from fastsurf.model import Model
from fastsurf.rays import Batch
from fastsurf.reconstruction import fit_to
from fastsurf.render import Samples, find, render_unified
from fastsurf.scene import load_scene
from fastsurf.training import Training, train

WARM_UP = 150  # native steps before anything is timed, so that the grid has culled what is empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    threads = args.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        make_scene(Path(folder), views=16, test=0, size=160)
        scene = load_scene(folder)
        config = fit_to(scene, load_config(None, ["train.steps=100000", f"train.rays={args.rays}"]))
        backends = {"native": choose_backend("native", threads), "reference": choose_backend("reference")}
        runs = {name: Training(scene, Model(config, backend, "random"), backend) for name, backend in backends.items()}
        torch.set_num_threads(1)
        for state in train(runs["native"]):
            if state.step == WARM_UP:
                break
        runs["reference"].model.load_state_dict(runs["native"].model.state_dict())
        for run in runs.values():
            run.step = WARM_UP + 1  # no grid update among the timed steps
        batch = scene.sample(args.rays, torch.Generator().manual_seed(0), 0.75)
        print(f"{args.rays} rays x {config.sampling.front + config.sampling.interval} samples, {config.field.levels} levels of 2^"
              f"{config.field.log2_entries}, {backends['native'].detail}; medians of {args.repeats}, milliseconds")
        print(f"{'':14}{'native':>10}{'reference':>12}{'ratio':>8}")
        for phase in ("search", "render", "step"):
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(args.repeats + 1):
                for name, run in runs.items():
                    torch.set_num_threads(1 if name == "native" else threads)
                    times[name].append(timed(work(phase, run, batch)))
            native, reference = (1000 * statistics.median(times[name][1:]) for name in runs)
            print(f"{phase:14}{native:10.1f}{reference:12.1f}{reference / native:8.1f}")


def work(phase: str, run: Training, batch: Batch) -> Callable[[], object]:
    """What is timed: the search for surfaces, the rendering of a batch (search included), or a training step."""
    model, samples = run.model, Samples(run.config.sampling.front, run.config.sampling.interval)
    if phase == "search":
        return lambda: find(batch.rays, model)
    if phase == "render":
        return lambda: render_unified(batch.rays, model, model.width, samples, lambda rays: torch.ones(len(rays), 3))
    return lambda: next(train(run))


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
