#!/usr/bin/env python3
"""How fast fastsurf is on this CPU, beside what the CPU can do at most.

    python tools/benchmark.py step|march|mesh|end-to-end|memory [--json FILE] [--repeats 7]
    python tools/benchmark.py forecast RUN... [--json FILE]

Candidates take turns in one process, so that other load hits them alike; medians are compared. Ratios carry over, times don't.

    step        a training step, 4096 rays x 24 samples, 12 levels of 2^17, 2 threads: the fused step against eager PyTorch autograd
    march       what the search for surfaces, the grid's updates and the other parts take of a training step as it runs by default
    mesh        a mesh at 512^3 against evaluating the field in all its cells
    end-to-end  `reconstruct` of a small made scene, phase by phase
    memory      the most that a process takes which does nothing but fused steps; `step` asks for it, too
    forecast    share of moments at which the time left is right within a fifth, after a tenth of the training: median and mean over
                finished runs, apart for so many steps (forecast again, as it is done now, from the logs) and so many minutes (as told)
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastsurf.backends.native import NativeBackend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.config import Config, load_config
from fastsurf.demo_scene import make_scene
from fastsurf.errors import FastsurfError
from fastsurf.forecast import Forecast
from fastsurf.fused import FusedStep
from fastsurf.hooks import PhaseStarted, Saved, TrainState
from fastsurf.losses import Weights
from fastsurf.mesh import extract
from fastsurf.model import Model
from fastsurf.rays import Batch, make_rays
from fastsurf.reconstruction import CONFIG, LOG, fit_to, reconstruct
from fastsurf.render import Samples, find
from fastsurf.sampling import decay
from fastsurf.scene import load_scene
from fastsurf.training import Training, background_color, learn, on_background, train
from fastsurf.ui.jsonlines import read_event

WARM_UP = 300  # steps before anything is timed, so that there is a surface and the grid has culled what is empty
FOR_EVER = 100_000
SETS = [f"train.steps={FOR_EVER}", "field.levels=12", "field.log2_entries=17", "sampling.front=8", "sampling.interval=16"]
RAYS = 4096
NO_NORMALS = ["color.inputs=x,h,d", "loss.smooth=0"]
LEAST_LEFT = 2.0  # seconds; nobody needs a forecast of less
HERE = Path(__file__).parent


class Eager(ReferenceBackend):
    """PyTorch and its autograd alone, the normal too."""

    normals = True

    def field(self, x, table, levels, weights):
        x = x.detach().requires_grad_(self.normals)
        out = self.mlp(self.encode(x, table, levels), weights)
        if not self.normals:
            return out, torch.ones_like(x)
        return out, torch.autograd.grad(out[:, 0].sum(), x, create_graph=True)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "march", "mesh", "end-to-end", "memory", "forecast"])
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs, for forecast")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if (args.what == "forecast") != bool(args.runs):
        parser.error("runs are for forecast, which wants some")
    measures = {"step": step, "march": march, "mesh": mesh, "end-to-end": end_to_end, "memory": memory}
    figures = forecasts(args.runs) if args.what == "forecast" else measures[args.what](args.repeats)
    for name, value in figures.items():
        print(f"{name:28}{value:12.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def step(repeats: int) -> dict[str, float]:
    """Rendering, losses and gradients of one batch whose samples are placed already by the same search."""
    one, two, eager = NativeBackend(1), NativeBackend(2), Eager()
    with_normals, without = trained(two), trained(two, NO_NORMALS)
    candidates = {
        "fused": work(with_normals, two), "fused without smoothing": work(with_normals, two, smooth=False),
        "fused, 1 thread": work(with_normals, one), "eager": work(with_normals, eager),
        "fused without normals": work(without, two), "eager without normals": work(without, eager),
        "autograd, native kernels": work(with_normals, two, fused=False),
    }  # fmt: skip
    a, b = torch.randn(2, 2048, 2048)
    candidates["sgemm"] = lambda: a @ b
    candidates["mlp"] = mlp_tiles(two)
    ms = interleaved(candidates, repeats)
    sgemm = 2 * 2048**3 / ms["sgemm"] / 1e6
    mlp = 2 * 3 * 65536 * (64 * 48 + 64 * 64 + 16 * 64) / ms["mlp"] / 1e6
    samples = RAYS * (with_normals.config.sampling.front + with_normals.config.sampling.interval)
    alone = float(run_python("-c", "import torch; print([line for line in open('/proc/self/status') if 'VmHWM' in line][0].split()[1])"))
    return {
        **limits(), "sgemm_gflops": sgemm, "mlp_gflops": mlp, "samples": float(samples), **{f"ms: {name}": t for name, t in ms.items()},
        "fused_over_eager": ms["eager without normals"] / ms["fused without normals"],
        "fused_over_eager_normals": ms["eager"] / ms["fused"],
        "fused_over_autograd": ms["autograd, native kernels"] / ms["fused"],
        "normals_over_no_normals": ms["fused without smoothing"] / ms["fused without normals"],
        "mlp_over_sgemm": mlp / sgemm,
        "threads_2_over_1": ms["fused, 1 thread"] / ms["fused"],
        "rss_over_import_mib": float(run_python(__file__, "memory").split()[1]) - alone / 1024,
    }  # fmt: skip


def mlp_tiles(backend: NativeBackend) -> Callable[[], object]:
    """The colour head's tiles there and back on 65536 rows, into memory that is there."""
    n, widths = 65536, (ctypes.c_int32 * 4)(48, 64, 64, 16)
    weights, x, y, d, dx = torch.randn(64 * 48 + 64 * 64 + 16 * 64), *(torch.randn(n, width) for width in (48, 16, 16, 48))
    hidden, d_weights = torch.empty(n * 128), torch.empty_like(weights)

    def go() -> None:
        backend._call("mlp", widths, 3, weights, x, n, y, hidden)
        backend._call("mlp_backward", widths, 3, weights, x, n, hidden, d, dx, d_weights)

    return go


def march(repeats: int) -> dict[str, float]:
    """What the parts of a default step take, early and at the end of a run of 1500 steps: 1024 rays, a grid update every sixteenth step."""
    stages = {"early": parts_of_step(repeats, []), "late": parts_of_step(repeats, ["train.steps=1500"])}
    figures = {f"{name}, {stage}": value for stage, found in stages.items() for name, value in found.items()}
    ms = {name: sum(found[f"ms: {name}"] for found in stages.values()) for name in ("search", "update", "step")}
    return {**figures, "march_share": (ms["search"] + ms["update"]) / ms["step"]}


def parts_of_step(repeats: int, sets: list[str]) -> dict[str, float]:
    """Milliseconds and shares of a step."""
    backend = NativeBackend(2)
    run = trained(backend, sets)
    model, generator, config = run.model, run.generator, run.config
    samples = Samples(config.sampling.front, config.sampling.interval, generator)
    assert run.fused is not None
    fused, kernels, inside = run.fused, backend.train_step, []
    batch = run.scene.sample(run.rays, generator, config.train.foreground)

    def timed(*arguments):
        start = time.perf_counter()
        found = kernels(*arguments)
        inside.append(time.perf_counter() - start)
        return found

    backend.train_step = timed  # type: ignore[method-assign]
    ms = interleaved({
        "pixels": lambda: run.scene.sample(run.rays, generator, config.train.foreground, backend),
        "search": lambda: fused.place(batch.rays, samples, model.in_use()), "update": lambda: model.update_grid(generator),
        "learn": lambda: learn(run), "adam": lambda: (learn(run), run.optimizer.step(run.progress())),
    }, repeats)  # fmt: skip
    ms["kernels"] = 1000 * statistics.median(inside[2:])
    ms["adam"] -= ms["learn"]
    ms["update"] /= config.grid.update_every
    ms["rest"] = ms["learn"] - ms["pixels"] - ms["search"] - ms["kernels"]
    whole = ms["learn"] + ms["adam"] + ms["update"]
    del ms["learn"]
    shares = {f"share: {name}": t / whole for name, t in ms.items()}
    times = {f"ms: {name}": t for name, t in ms.items()}
    return {**times, "ms: step": whole, **shares}


def mesh(repeats: int) -> dict[str, float]:
    """The dense evaluation is timed on eight planes through the middle, in the lattice's order, where neighbours share the cache; and at
    as many points at random, which takes longer."""
    model, resolution = trained(NativeBackend(2), ["train.steps=1000"]).model, 512
    model.update_grid(torch.Generator().manual_seed(0), everywhere=True)
    axis = torch.linspace(-1, 1, resolution + 1)
    planes = torch.cartesian_prod(axis[resolution // 2 - 4 : resolution // 2 + 4], axis, axis)
    scattered = torch.rand(len(planes), 3) * 2 - 1
    seen = [0]

    def level(x: Tensor) -> Tensor:
        seen[0] += len(x)
        return model.level(x)

    def whole() -> object:
        seen[0] = 0
        return extract(level, model.occupied, resolution, True, threads=2)

    candidates = {"extract": whole, "planes": lambda: model.level(planes), "scattered": lambda: model.level(scattered)}
    ms = interleaved(candidates, min(repeats, 5))
    dense = {name: ms[name] * (resolution + 1) ** 3 / len(planes) for name in ("planes", "scattered")}
    return {"ms: extract": ms["extract"], "ms: dense": dense["planes"], "points_share": seen[0] / (resolution + 1) ** 3,
            "mesh_over_dense": dense["planes"] / ms["extract"], "mesh_over_scattered": dense["scattered"] / ms["extract"]}  # fmt: skip


def end_to_end(repeats: int) -> dict[str, float]:
    """One run of 1000 steps, from photographs to the file."""
    with tempfile.TemporaryDirectory() as folder:
        make_scene(Path(folder) / "scene", views=16, test=0, size=160)
        result = reconstruct(Path(folder) / "scene", load_config(None, ["train.steps=1000"]), run=Path(folder) / "run")
    assert result.state is not None
    seconds = {f"seconds: {name}": t for name, t in result.seconds.items()}
    return {**seconds, "steps_per_minute": 60_000 / result.seconds["train"], "psnr": result.state.psnr}


def memory(repeats: int) -> dict[str, float]:
    """Peak memory of a process that does nothing but fused steps, on rays towards the untrained sphere."""
    backend, n = NativeBackend(2), RAYS
    model = Model(load_config(None, [*SETS, "field.finest_resolution=1003"]), backend, "random")
    towards = torch.rand(n, 3) - 0.5
    origins = torch.nn.functional.normalize(torch.randn(n, 3), dim=1) * 3
    rays = make_rays(origins, torch.nn.functional.normalize(towards - origins, dim=1))
    fused, color = FusedStep(model, backend), torch.rand(n, 3)
    for _ in range(3):
        fused(Batch(rays, color, color[:, 0]), color, color, Samples(8, 16, torch.Generator()), Weights())
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory as well
    return {"peak_mib": float(status.split("VmHWM:")[1].split()[0]) / 1024}


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=True, text=True).stdout


def trained(backend: NativeBackend, sets: list[str] | None = None) -> Training:
    """A run on a small made scene after some steps, or at the end of those that are set."""
    with tempfile.TemporaryDirectory() as folder:
        make_scene(Path(folder), views=16, test=0, size=160)
        scene = load_scene(folder)
    torch.set_num_threads(1)
    run = Training(scene, Model(fit_to(scene, load_config(None, [*SETS, *(sets or [])])), backend, "random"), backend)
    for state in train(run):
        if state.step == WARM_UP and run.config.train.steps == FOR_EVER:
            break
    return run


def work(run: Training, backend: NativeBackend | ReferenceBackend, fused: bool = True, smooth: bool = True) -> Callable[[], object]:
    """A step on RAYS rays. Every candidate looks for surfaces with the native kernels: that part is the same, and timed by `march`."""
    config = replace(run.config, train=replace(run.config.train, rays=RAYS))
    if not smooth:
        config = replace(config, loss=replace(config.loss, smooth=0.0))
    model = Model(config, backend, "random")
    model.load_state_dict(run.model.state_dict())
    model.set_progress(run.progress())
    generator = torch.Generator().manual_seed(0)
    batch = run.scene.sample(RAYS, generator, config.train.foreground)
    behind = background_color(model, batch.rays, generator)
    found = find(batch.rays, run.model, generator)
    model.first_crossing = lambda *_: found  # type: ignore[method-assign]
    twin = Training(run.scene, model, backend)
    twin.scene = Fixed(batch)
    if not fused:
        twin.fused = None
    if twin.fused is not None:
        placed = twin.fused.place(batch.rays, Samples(config.sampling.front, config.sampling.interval, generator), model.in_use())
        twin.fused.place = lambda *_: placed  # type: ignore[method-assign]
    if isinstance(backend, Eager):
        backend = twin.backend = model.backend = Eager()
        backend.normals = "n" in model.head.used
    assert on_background(batch, behind).shape == (RAYS, 3)

    def go() -> Tensor:
        numbers = learn(twin)
        for p in model.parameters():
            p.grad = None
        return numbers

    return go


class Fixed:
    """A scene that always shows the same pixels."""

    def __init__(self, batch):
        self.batch, self.masks = batch, batch.mask

    def sample(self, *_):
        return self.batch


def forecasts(runs: list[Path]) -> dict[str, float]:
    """The share of moments, between a tenth of the training and its last two seconds, at which the time left is right within a fifth."""
    shares: dict[str, list[float]] = {"steps": [], "minutes": []}
    for run in runs:
        try:
            config = load_config(str(run / CONFIG))
        except FastsurfError as e:
            print(f"left out: {e}")
            continue
        kind, told = "minutes" if config.train.steps is None else "steps", seconds_left(run, config)
        good = [abs(left - true) < 0.2 * true for left, true in told if true > LEAST_LEFT]
        if good:
            shares[kind].append(statistics.mean(good))
    return {
        f"{kind}: {name}": value
        for kind, of in shares.items() if of
        for name, value in (("runs", float(len(of))), ("median", statistics.median(of)), ("mean", statistics.mean(of)))
    }  # fmt: skip


def seconds_left(run: Path, config: Config) -> list[tuple[float, float]]:
    """Time left as forecast and as it was, after a tenth of a run's training; nothing of one that isn't finished, or was resumed."""
    forecast, aside, meshed, before = Forecast(decay(config.sampling)), 0.0, False, 0.0
    states, told, begun = [], [], 0
    forecast(0.0, 0.0)
    for event in map(read_event, (run / LOG).read_text(errors="replace").splitlines()):
        begun += isinstance(event, PhaseStarted) and event.name == "train"
        meshed |= isinstance(event, Saved) and event.what in ("first mesh", "preview mesh")
        if isinstance(event, TrainState):
            if meshed and states:  # the log has every step that a mesh comes after
                pace = states[-1].seconds / states[-1].step
                aside += max(event.seconds - before - pace * (event.step - states[-1].step), 0.0)
            told.append(forecast(event.progress, event.seconds - aside) if config.train.steps is not None else event.seconds_left)
            states.append(event)
            before, meshed = event.seconds, False
    if begun != 1 or not states or states[-1].progress < 1.0:
        return []
    return [(left, states[-1].seconds - s.seconds) for left, s in zip(told, states, strict=True) if s.progress >= 0.1]


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, function in candidates.items():
            torch.set_num_threads(2 if name in ("sgemm", "eager", "eager without normals") else 1)  # as reconstruct does
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(t[1:]) for name, t in times.items()}


def limits() -> dict[str, float]:
    """Of the machine, where a compiler can be found."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        try:
            flags = ["-O3", "-mavx2", "-mfma", "-std=c++17", "-shared", "-fPIC", "-pthread"]
            subprocess.run(["c++", *flags, str(HERE / "limits.cpp"), "-o", str(library)], check=True)
            c = ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError) as e:
            print(f"the machine's limits are not measured: {e}")
            return {}
        c.fma_peak.restype = c.gather_rate.restype = ctypes.c_double
        return {
            "fma_peak_gflops": c.fma_peak(2) / 1e9,
            "gather_1mib_m_per_s": c.gather_rate(2, 17) / 1e6,
            "gather_8mib_m_per_s": c.gather_rate(2, 20) / 1e6,
        }


if __name__ == "__main__":
    main()
