#!/usr/bin/env python3
"""Whether the CUDA backends are right and how fast they are, on this machine, in one command of under 8 minutes.

    python tools/gpu_check.py [--json FILE] [--quick] [--skip-scene] [--profile] [--backends triton,cuda]

Parity: every operation against the reference in float64 on the CPU, for the default model's shapes. Trips: runs saved by one backend and
opened by all others. Speed: phases of a step and whole steps, backends taking turns. Scene: the demo scene from command to file, scored.
Profile: where a step's time goes. Ends with 1 if a check failed or could not be made. `--backends native,reference` tries the tool itself
on a CPU. Each part runs in a process of its own, so that a broken kernel spoils no other part; the report is kept up to date.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad

import fastsurf
from fastsurf.backends import Backend, choose_backend, survey
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.checkpoint import load_model, read_header, resume, save_checkpoint
from fastsurf.config import load_config
from fastsurf.encoding import entries, growth, level_table, stable_finest
from fastsurf.formats import load
from fastsurf.meshio import read_mesh
from fastsurf.metrics import read_truth, score_mesh
from fastsurf.model import Model
from fastsurf.optim import BETAS, EPSILON
from fastsurf.pictures import render_rays
from fastsurf.rays import make_rays
from fastsurf.reconstruction import LOG, background_kind, fit_to, make_mesh
from fastsurf.render import find
from fastsurf.sampling import place
from fastsurf.scene import Scene, load_scene
from fastsurf.surface import march
from fastsurf.training import Training, learn, train

PACKAGE = Path(fastsurf.__file__).parents[1]
CUDA_BACKENDS = ("triton", "cuda")
PARTS = ("parity", "trips", "speed", "profile", "scene")
Row = dict[str, Any]  # one result, as it stands in the report; "ok" is False where a check failed
Backends = Mapping[str, Backend]  # by label: "triton exact"

# ---- parity

EXACT = 1e-5  # relative error of norms: float32, sums in any order
POSITIONS = 1e-4  # where positions come in: rounded to float32 in cells 1/1024 wide, plain PyTorch is off by 4e-5
FAST = {"value": 2e-3, "gradient": 1e-2}  # half inputs of matrix products: field and mlp alone
TINY_CUDA_NN = 2e-4  # it is compiled with fast approximations, that of the levels' scales among them
SHARE = 2e-3  # of rays that may take another cell or miss a grazed surface, by rounding
NERFACC_SHARE = 2e-2  # it adds up from cell to cell where a ray goes on
NOT_OFFERED = {("cuda", "encode twice, table")}  # tiny-cuda-nn has no derivatives of the table's gradient; nothing here uses them
FACE, KINK = 1e-3, 5e-3  # distance of points from cell faces (cells) and of hidden units from the ReLU's kink


class Problem:
    """The default model's shapes with random parameters, and n points that keep off faces and kinks; float32 on the CPU."""

    def __init__(self, n: int, seed: int, finest: int = 1024):
        g, c = torch.Generator().manual_seed(seed), load_config()
        levels, log2, base, width = c.field.levels, c.field.log2_entries, c.field.base_resolution, c.field.width
        self.levels = level_table(levels, log2, base, growth(levels, base, stable_finest(levels, log2, base, finest)))
        self.table = torch.randn(entries(self.levels), 2, generator=g)
        self.weights = matrices([2 * levels, width, 16], g)
        self.head = matrices([48, *[c.color.width] * c.color.hidden, 16], g)
        x = torch.rand(3 * n + 100, 3, generator=g)
        p = torch.stack([x.double() * v.scale + 0.5 for v in self.levels], 1)
        h = ReferenceBackend().encode(x.double(), self.table.double(), self.levels)
        self.x = x[((p - p.round()).abs() > FACE).flatten(1).all(1) & off_kinks(h, self.weights)][:n]
        y = torch.randn(6 * n + 100, 48, generator=g)
        self.y = y[off_kinks(y.double(), self.head)][:n]
        assert len(self.x) == len(self.y) == n, (len(self.x), len(self.y), n)
        self.d_out, self.d_gradient, self.d_encoding = (torch.randn(n, k, generator=g) for k in (16, 3, 2 * levels))
        alphas = torch.rand(max(n // 4, 1), 24, generator=g) ** 2
        alphas[torch.rand(alphas.shape, generator=g) < 0.3] = 0.0
        self.alphas = torch.where(torch.rand(alphas.shape, generator=g) < 0.02, 1.0, alphas)
        self.d_weights = torch.randn(self.alphas.shape, generator=g)
        self.seed, self.n = seed, n


def matrices(widths: Sequence[int], g: torch.Generator) -> list[Tensor]:
    """[out, in] of an MLP, of a size that keeps the values' size."""
    return [torch.randn(b, a, generator=g) / math.sqrt(a) for a, b in itertools.pairwise(widths)]


def off_kinks(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Rows of x for which no hidden unit is close to 0."""
    clear = torch.ones(len(x), dtype=torch.bool)
    for w in weights[:-1]:
        z = x @ w.double().T
        clear &= (z.abs() > KINK).all(1)
        x = torch.relu(z)
    return clear


class On:
    """Moves float32 tensors to a backend in a precision, as leaves to differentiate."""

    def __init__(self, backend: Backend, kind: torch.dtype):
        self.backend, self.kind = backend, kind

    def __call__(self, a: Tensor, leaf: bool = False) -> Tensor:
        return a.detach().to(self.backend.device, self.kind).clone().requires_grad_(leaf)

    def leaves(self, many: Sequence[Tensor]) -> list[Tensor]:
        return [self(a, leaf=True) for a in many]


Values = dict[str, Tensor]  # by quantity; a name with "d " in front is a gradient


def check_encode(b: Backend, p: Problem, on: On) -> Values:
    x, table, u = on(p.x, True), on(p.table, True), on(p.d_encoding)
    h = b.encode(x, table, p.levels)
    d_x, d_table = grad(h, (x, table), u)
    return {"values": h, "d x": d_x, "d table": d_table}


def check_encode_twice_x(b: Backend, p: Problem, on: On) -> Values:
    """The gradient for x once more: what normals by autograd need."""
    x, table, u = on(p.x, True), on(p.table, True), on(p.d_encoding, True)
    (d_x,) = grad(b.encode(x, table, p.levels), x, u, create_graph=True)
    dd = grad(d_x, (x, table, u), on(p.d_gradient))
    return dict(zip(("d x of d x", "d table of d x", "d u of d x"), dd, strict=True))


def check_encode_twice_table(b: Backend, p: Problem, on: On) -> Values:
    """The gradient for the table once more."""
    x, table, u = on(p.x, True), on(p.table, True), on(p.d_encoding, True)
    (d_table,) = grad(b.encode(x, table, p.levels), table, u, create_graph=True)
    dd = grad(d_table, (x, u), on(p.table.cos()))
    return dict(zip(("d x of d table", "d u of d table"), dd, strict=True))


def check_field(b: Backend, p: Problem, on: On) -> Values:
    table, weights = on(p.table, True), on.leaves(p.weights)
    out, gradient = b.field(on(p.x), table, p.levels, weights)
    parameters, names = (table, *weights), ("table", "w1", "w2")
    d_out, d_gradient = on(p.d_out), on(p.d_gradient)
    found = {"values": out, "d x of value": gradient}
    both = (out, gradient), (d_out, d_gradient)
    for by, results, given in (("out", out, d_out), ("normal", gradient, d_gradient), ("both", *both)):
        d = grad(results, parameters, given, retain_graph=True)
        found |= {f"d {parameter} by {by}": a for parameter, a in zip(names, d, strict=True)}
    return found


def check_field_value(b: Backend, p: Problem, on: On) -> Values:
    return {"values": b.field_value(on(p.x), on(p.table), p.levels, [on(w) for w in p.weights])}


def check_mlp(b: Backend, p: Problem, on: On) -> Values:
    y, weights = on(p.y, True), on.leaves(p.head)
    out = b.mlp(y, weights)
    d_y, *d_weights = grad(out, (y, *weights), on(p.d_out))
    return {"values": out, "d x": d_y} | {f"d w{k + 1}": d for k, d in enumerate(d_weights)}


def check_weights_of(b: Backend, p: Problem, on: On) -> Values:
    alphas = on(p.alphas, True)
    w = b.weights_of(alphas)
    return {"values": w, "d alphas": grad(w, alphas, on(p.d_weights))[0]}


def check_adam(b: Backend, p: Problem, on: On) -> Values:
    g = torch.Generator().manual_seed(p.seed)
    start = on(p.table[: 64 * p.n + 3] * 0.1)
    q, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 6):
        d = torch.randn(start.shape, generator=g) * (torch.rand(start.shape, generator=g) < 0.3)
        b.adam_(q, on(d), m, v, step, 1e-2, BETAS, EPSILON)
    return {"values": q - start, "first moment": m, "second moment": v}


class Bumps:
    """A bumpy ball, rays from around and from within, and cells of which half are in use."""

    def __init__(self, p: Problem):
        g = torch.Generator().manual_seed(100 + p.seed)
        c = load_config()
        scale = torch.cat([torch.full((level.size, 1), 0.5 / max(level.scale, 1.0)) for level in p.levels])
        self.table, self.levels, self.weights, self.prior = p.table * scale, p.levels, p.weights, 0.6
        towards = torch.rand(p.n, 3, generator=g) * 2.4 - 1.2
        origins = torch.nn.functional.normalize(torch.randn(p.n, 3, generator=g), dim=1) * 4 * torch.rand(p.n, 1, generator=g)
        self.rays = make_rays(origins, torch.nn.functional.normalize(towards - origins, dim=1))
        self.occupied = torch.rand(*[c.grid.resolution] * 3, generator=g) < 0.5
        self.offset = torch.rand(p.n, generator=g)
        self.step, self.secant_steps = 2 * 3**0.5 / c.grid.steps, c.grid.secant_steps

    def slope(self, t: Tensor) -> Tensor:
        """Change of the level along each ray at t, in float64."""
        values, table, weights = [], self.table.double(), [w.double() for w in self.weights]
        for s in (t - 1e-4, t + 1e-4):
            x = self.rays.at(s).double()
            g = ReferenceBackend().field_value((x / 2 + 0.5).clamp(0, 1), table, self.levels, weights)
            values.append(g - x.norm(dim=1))
        return (values[1] - values[0]) / 2e-4


def check_occupied_steps(b: Backend, p: Problem) -> dict[str, tuple[float, float]]:
    """Against the reference in float32: where cells begin is a question of rounding."""
    s, device = Bumps(p), b.device
    wanted_t, wanted_count = march(s.rays, s.occupied, s.step, ReferenceBackend(), s.offset)
    t, count = (a.cpu() for a in march(s.rays.to(device), s.occupied.to(device), s.step, b, s.offset.to(device)))
    same = count == wanted_count
    off = (t - wanted_t).abs().amax(1) > 1e-5
    most = NERFACC_SHARE if b.name == "cuda" else SHARE
    return {"share of rays that differ": (float((~same | off).double().mean()), most)}


def check_first_crossing(b: Backend, p: Problem) -> dict[str, tuple[float, float]]:
    """Against the reference in float32, on the same lattice; distances where the surface isn't grazed."""
    s, device = Bumps(p), b.device
    lattice, count = march(s.rays, s.occupied, s.step, ReferenceBackend(), s.offset)

    def crossings(b: Backend, device: torch.device) -> tuple[Tensor, Tensor]:
        net = (s.table.to(device), s.levels, [w.to(device) for w in s.weights])
        t, hit = b.first_crossing(s.rays.to(device), lattice.to(device), count.to(device), s.step, s.secant_steps, s.prior, *net)
        return t.cpu(), hit.cpu()

    (t, hit), (wanted_t, wanted_hit) = crossings(b, device), crossings(ReferenceBackend(), torch.device("cpu"))
    steep = hit & wanted_hit & (s.slope(wanted_t).abs() > 0.2)
    off = ((t - wanted_t).abs() > 1e-5)[steep]
    return {
        "share of rays that differ": (float((hit != wanted_hit).double().mean()), SHARE),
        "share of distances off by 1e-5": (float(off.double().mean()) if len(off) else 0.0, SHARE),
        "misses placed before t_far": (float((t[~hit] != s.rays.t_far[~hit]).sum()), 0.0),
    }


def check_nothing(b: Backend, p: Problem) -> dict[str, tuple[float, float]]:
    """No points and no rays at all, as happens when everything is culled: shapes are kept, gradients are zero."""
    on = On(b, torch.float32)
    table, weights, head = on(p.table, True), on.leaves(p.weights), on.leaves(p.head)
    out, gradient = b.field(on(p.x[:0]), table, p.levels, weights)
    w = b.weights_of(on(p.alphas[:0]))
    y, h = b.mlp(on(p.y[:0]), head), b.encode(on(p.x[:0]), table, p.levels)
    d = grad(out.sum() + gradient.sum() + y.sum() + h.sum(), (table, *weights, *head))
    s, net = Bumps(p), (table.detach(), p.levels, [w.detach() for w in weights])
    no_rays = s.rays[:0].to(b.device)
    t, count = march(no_rays, s.occupied.to(b.device), s.step, b, s.offset[:0].to(b.device))
    crossed, hit = b.first_crossing(no_rays, t, count, s.step, 8, s.prior, *net)
    value = b.field_value(on(p.x[:0]), *net)
    shapes = [tuple(a.shape) for a in (out, gradient, w, y, h, count, crossed, hit, value)]
    wanted = [(0, 16), (0, 3), (0, 24), (0, 16), (0, 2 * len(p.levels)), (0,), (0,), (0,), (0,)]
    return {
        "shapes that differ": (float(sum(a != b for a, b in zip(shapes, wanted, strict=True))), 0.0),
        "gradients that are not zero": (float(sum(bool(a.any()) for a in d)), 0.0),
    }


COMPARED: dict[str, Callable[[Backend, Problem, On], Values]] = {
    "encode": check_encode, "encode twice, x": check_encode_twice_x, "encode twice, table": check_encode_twice_table,
    "field": check_field, "field_value": check_field_value, "mlp": check_mlp, "weights_of": check_weights_of, "adam_": check_adam,
}  # fmt: skip
COUNTED: dict[str, Callable[[Backend, Problem], dict[str, tuple[float, float]]]] = {
    "occupied_steps": check_occupied_steps, "first_crossing": check_first_crossing, "nothing": check_nothing,
}  # fmt: skip


def parity(backends: Backends, points: int, seeds: int, late: Callable[[], bool] = lambda: False) -> Iterator[Row]:
    """A row for each check and quantity: the largest error over all seeds by backend, its tolerance and whether that is kept.

    "float32" stands beside them without a verdict: plain PyTorch in float32 on the CPU.
    """
    problems = [Problem(max(points >> 2 * k, 1) + k, k) for k in range(seeds)]  # each seed has another number of points
    on_cpu: dict[str, Backend] = {"float32": ReferenceBackend()}
    for name, compared in COMPARED.items():
        if late():
            yield trouble("parity", name, "not checked: no time left")
            continue
        truths = [compared(ReferenceBackend(), p, On(ReferenceBackend(), torch.float64)) for p in problems]
        rows: dict[str, Row] = {q: {"part": "parity", "check": name, "quantity": q, "results": {}} for q in truths[0]}
        for label, b in (on_cpu | dict(backends)).items():
            if (b.name, name) in NOT_OFFERED:
                continue
            try:
                found = [compared(b, p, On(b, torch.float32)) for p in problems]
                for q in truths[0]:
                    error = max(relative_error(f[q], t[q]) for f, t in zip(found, truths, strict=True))
                    rows[q]["results"][label] = verdict(error, None if label == "float32" else tolerance(name, q, b, label))
            except Exception as e:
                next(iter(rows.values()))["results"][label] = failure(e)
        yield from rows.values()
    for name, counted in COUNTED.items():
        if late():
            yield trouble("parity", name, "not checked: no time left")
            continue
        rows = {}
        for label, b in backends.items():
            try:
                for p in problems:
                    for q, (error, most) in counted(b, p).items():
                        row = rows.setdefault(q, {"part": "parity", "check": name, "quantity": q, "results": {}})
                        before = row["results"].get(label, {"error": 0.0})
                        row["results"][label] = verdict(max(error, before["error"]), most)
            except Exception as e:
                row = rows.setdefault("", {"part": "parity", "check": name, "quantity": "", "results": {}})
                row["results"][label] = failure(e)
        yield from rows.values()


def tolerance(check: str, quantity: str, b: Backend, label: str) -> float:
    if check in ("field", "mlp") and label.endswith("fast"):
        return FAST["gradient" if quantity.startswith("d ") else "value"]
    if check.startswith(("encode", "field")):
        return TINY_CUDA_NN if b.name == "cuda" else POSITIONS
    return EXACT


def verdict(error: float, most: float | None) -> Row:
    return {"error": error} if most is None else {"error": error, "tolerance": most, "ok": error <= most}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Of the norm; infinite for another shape."""
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = found.detach().double().cpu(), wanted.detach()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


# ---- round trips of checkpoints

TRIP = ("train.steps=200", "mesh.resolution=128", "mesh.min_component=0.05")
TRIP_STEPS = 160
SAME_LEVEL, SAME_PLACE, SAME_COLOUR = 1e-5, 0.05, 2e-3  # relative; cells; of 1


def trips(backends: Backends, scene: Scene, folder: Path, sets: Sequence[str] = TRIP, steps: int = TRIP_STEPS,
          late: Callable[[], bool] = lambda: False) -> Iterator[Row]:  # fmt: skip
    """Each backend trains and saves, each of the others opens that: the same field, mesh and picture, and training goes on."""
    from scipy.spatial import cKDTree

    config = fit_to(scene, load_config(None, sets))
    x = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rays, _ = scene.rays(scene.train[0], stride=max(1, scene.images[scene.train[0]].shape[0] // 32))

    def look(model: Model) -> tuple[Tensor, np.ndarray, Tensor]:
        level = model.level(x.to(model.backend.device)).cpu().double()
        mesh = make_mesh(model, scene.center, scene.radius, config, lambda event: None)
        return level, (mesh.vertices - scene.center) / scene.radius, render_rays(model, rays).rgb

    for trainer in [label for label in backends if not label.startswith("reference")] or list(backends):
        if late():
            yield trouble("trips", trainer, "not checked: no time left")
            continue
        path = folder / f"{trainer}.safetensors".replace(" ", "_")
        try:
            run = Training(scene, Model(config, backends[trainer], background_kind(scene, config)), backends[trainer])
            for state in train(run):
                if state.step >= steps or late():
                    break
            save_checkpoint(path, run)
            run.model.set_progress(run.progress())
            level, vertices, picture = look(run.model)
            moments = {name: m.cpu() for name, m in run.optimizer.tensors().items()}
        except Exception as e:
            yield trouble("trips", trainer) | failure(e)
            continue
        for label, b in backends.items():
            if late():
                yield trouble("trips", f"{trainer} to {label}", "not checked: no time left")
                continue
            row: Row = {"part": "trips", "from": trainer, "to": label}
            try:
                header = read_header(path)
                model = Model(header.config, b, header.background)
                load_model(path, model)
                model.set_progress(header.progress)
                level2, vertices2, picture2 = look(model)
                apart = np.concatenate([cKDTree(a).query(c)[0] for a, c in ((vertices, vertices2), (vertices2, vertices))])
                row["level"] = verdict(relative_error(level2, level), SAME_LEVEL)
                row["mesh"] = verdict(float(np.quantile(apart, 0.999)) * config.mesh.resolution / 2, SAME_PLACE)
                row["picture"] = verdict(float((picture2 - picture).abs().mean()), SAME_COLOUR)
                again = Training(scene, model, b)
                resume(path, again)
                same = all(torch.equal(m.cpu(), moments[name]) for name, m in again.optimizer.tensors().items())
                losses = [state.loss for state in itertools.islice(train(again), 3)]
                row["resumed"] = {"losses": losses, "ok": same and len(losses) == 3 and max(losses) < 3 * state.loss}
                row["ok"] = all(row[k]["ok"] for k in ("level", "mesh", "picture", "resumed"))
            except Exception as e:
                row |= failure(e)
            yield row


# ---- speed

SAMPLES = (18, 20, 16, 17, 19)  # log2, in the order in which they are timed
TORCH_MOST = 18  # log2 of samples up to which plain PyTorch is timed
PHASES = ("encode", "field", "field + backward", "mlp + backward", "search", "weights_of + backward", "adam", "grid update", "step")
WARM_STEPS, WHOLE = 300, 600  # trained before anything is timed; half of the schedule
REPEATS, INNER, STEPS = 11, 4, 4  # medians of; calls and steps timed together, but for grid updates


class Counted:
    """A backend that counts the points at which the field is evaluated with normals."""

    def __init__(self, backend: Backend):
        self.backend, self.points = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def field(self, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        self.points += len(x)
        return self.backend.field(x, *rest)


def speed(backends: Backends, scene: Scene, log2_samples: Sequence[int], repeats: int = REPEATS, warm_steps: int = WARM_STEPS,
          sets: Sequence[str] = (), late: Callable[[], bool] = lambda: False) -> Iterator[Row]:  # fmt: skip
    """Milliseconds of each phase at each number of samples, backends taking turns; memory, and samples a second."""
    device = next(iter(backends.values())).device
    yield {"part": "speed", "phase": "machine", **limits(device)}
    config = fit_to(scene, load_config(None, [f"train.steps={WHOLE}", *sets]))
    runs: dict[str, Training] = {}
    for label, b in backends.items():
        try:
            runs[label] = Training(scene, Model(config, b, background_kind(scene, config)), b)
            if len(runs) == 1:
                for state in train(runs[label]):
                    if state.step >= warm_steps or late():
                        break
                trained = runs[label].model.state_dict()
                yield {"part": "speed", "phase": "trained", "by": label, "steps": state.step, "seconds": state.seconds, "psnr": state.psnr,
                       "occupied": state.occupied, "hit": state.hit}  # fmt: skip
            else:
                runs[label].model.load_state_dict(trained)
        except Exception as e:
            runs.pop(label, None)
            yield trouble("speed", label) | failure(e)
    per_ray = config.sampling.front + config.sampling.interval
    for log2 in log2_samples:
        if late():
            yield {"part": "speed", "phase": "left out", "samples": 1 << log2, "reason": "no time left"}
            continue
        n_rays = (1 << log2) // per_ray
        for run in runs.values():
            run.model.set_progress((warm_steps + 1) / WHOLE)
            run.rays, run.learn = n_rays, None  # recorded anew
        racing = {label: r for label, r in runs.items() if label != "torch" or log2 <= TORCH_MOST}
        for phase in PHASES:
            row: Row = {"part": "speed", "phase": phase, "samples": n_rays * per_ray, "rays": n_rays, "ms": {}, "reasons": {}}
            jobs, times = {}, {}
            for label, run in racing.items():
                try:
                    jobs[label] = job(phase, run, n_rays, warm_steps + 1)
                    jobs[label]()
                    if phase == "step":
                        row |= {"memory": row.get("memory", {}) | {label: step_memory(run, jobs[label])}}
                        row |= {"evaluated": row.get("evaluated", {}) | {label: evaluated(run)}}
                    timed(jobs[label], device)
                except Exception as e:
                    jobs.pop(label, None)
                    row |= failure(e)
                    row["reasons"][label] = row.pop("reason")
            inner = {"step": STEPS, "grid update": 1}.get(phase, INNER)
            for _ in range(repeats):
                for label, work in jobs.items():
                    times.setdefault(label, []).append(timed(work, device, inner))
                if late() and all(len(t) >= 3 for t in times.values()):
                    break
            row["ms"] = {label: statistics.median(t) for label, t in times.items()}
            row["repeats"] = min((len(t) for t in times.values()), default=0)
            yield row
            jobs.clear()


def job(phase: str, run: Training, n_rays: int, step: int) -> Callable[[], object]:
    """What is timed; all inputs are made beforehand, from points along rays as they come in training."""
    model, b, c = run.model, run.backend, run.config
    generator = torch.Generator(b.device).manual_seed(0)

    def whole() -> object:
        run.step = step  # the same point of the schedule, without a grid update
        return next(train(run))

    if phase == "step":
        return whole
    if phase == "grid update":
        return lambda: model.update_grid(generator)
    rays = run.scene.sample(n_rays, generator, c.train.foreground).rays
    if phase == "search":
        return lambda: find(rays, model)
    f = model.field
    parameters = (f.table, f.w1, f.w2)
    if phase == "adam":
        p, d = f.table.detach().clone(), torch.randn_like(f.table) * 1e-4
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        return lambda: b.adam_(p, d, m, v, 10, 1e-9, BETAS, EPSILON)
    t = place(rays, find(rays, model), model.width, c.sampling.front, c.sampling.interval, generator)
    if phase == "weights_of + backward":
        alphas = torch.rand(t.shape, generator=generator, device=b.device).requires_grad_()
        by = torch.randn(t.shape, generator=generator, device=b.device)
        return lambda: grad(b.weights_of(alphas), alphas, by)
    x = (rays.at(t).view(-1, 3) / 2 + 0.5).clamp(0, 1)

    def randn(k: int) -> Tensor:
        return torch.randn(len(x), k, generator=generator, device=b.device)

    if phase == "encode":
        return lambda: without_gradients(lambda: b.encode(x, f.table, f.levels))
    if phase == "field":
        return lambda: without_gradients(lambda: b.field(x, f.table, f.levels, parameters[1:]))
    if phase == "field + backward":
        d_out, d_gradient = randn(16), randn(3)
        return lambda: grad(b.field(x, f.table, f.levels, parameters[1:]), parameters, (d_out, d_gradient))
    y, d_y = randn(48).requires_grad_(), randn(16)
    head = list(model.head.weights)
    return lambda: grad(b.mlp(y, head), (y, *head), d_y)


@torch.no_grad()
def without_gradients(function: Callable[[], object]) -> object:
    return function()


def timed(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Milliseconds a call, the GPU's own clock where there is one."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return 1000 * (time.perf_counter() - began) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls


def step_memory(run: Training, step: Callable[[], object]) -> float | None:
    """MiB of one run: parameters, moments and grid, and what a step allocates beyond that; photographs and other runs left out."""
    if run.backend.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run.learn = None
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    kept = [*run.model.state_dict().values(), *run.optimizer.tensors().values()]
    return (torch.cuda.max_memory_allocated() - before + sum(a.numel() * a.element_size() for a in kept)) / 2**20


def evaluated(run: Training) -> int:
    """Points of one step at which the field is evaluated with normals; where that isn't all, the rest lie in empty cells."""
    counted = Counted(run.backend)
    run.model.backend, kept = counted, run.model.backend  # type: ignore[assignment]
    run.fused, fused = None, run.fused
    try:
        learn(run)
    finally:
        run.model.backend, run.fused = kept, fused
        run.model.zero_grad()
    return counted.points


def limits(device: torch.device) -> Row:
    """What the machine itself can do: GB/s of a copy (read and written), TFLOP/s of matrix products."""
    cuda = device.type == "cuda"
    a = torch.empty((1 << 30 if cuda else 1 << 26) // 4, device=device)
    b, side = torch.empty_like(a), 8192 if cuda else 1024

    def copy_rate() -> float:
        b.copy_(a)
        return 2 * a.numel() * 4 / min(timed(lambda: b.copy_(a), device, 4) for _ in range(5)) / 1e6

    def product_rate(kind: torch.dtype) -> float:
        m = torch.randn(side, side, device=device, dtype=kind)
        m @ m
        return 2 * side**3 / min(timed(lambda: m @ m, device, 2) for _ in range(3)) / 1e9

    rates = {"copy_gb_s": copy_rate(), "float32_tflop_s": product_rate(torch.float32)}
    return rates | ({"half_tflop_s": product_rate(torch.float16)} if cuda else {})


# ---- profile

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def profile(backends: Backends, scene: Scene, sets: Sequence[str] = (), steps: int = 10, late: Callable[[], bool] = lambda: False
            ) -> Iterator[Row]:  # fmt: skip
    """Where a step's time goes at the default number of rays, and whether the GPU waits for launches."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    config = fit_to(scene, load_config(None, [f"train.steps={WHOLE}", *sets]))
    for label, b in backends.items():
        if late():
            yield {"part": "profile", "by": label, "reason": "no time left"}
            continue
        cuda = b.device.type == "cuda"
        try:
            run = Training(scene, Model(config, b, background_kind(scene, config)), b)
            for state in train(run):
                if state.step >= WARM_STEPS // 2 or late():
                    break

            def some(run: Training = run) -> None:
                for _ in itertools.islice(train(run), steps):
                    pass

            wall = timed(some, b.device) / steps
            with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as record:
                some()
                if cuda:
                    torch.cuda.synchronize()
            averages = record.key_averages()
            on_gpu = [e for e in averages if "cuda" in str(e.device_type).lower()]
            key, events = ("self_device_time_total", on_gpu) if cuda else ("self_cpu_time_total", list(averages))
            busy = sum(getattr(e, key) for e in events) / steps / 1000
            kinds = (("launches", LAUNCHES), ("waits", WAITS))
            count = {name: sum(e.count for e in averages if e.key in keys) / steps for name, keys in kinds}
            issuing = sum(e.self_cpu_time_total for e in averages if e not in on_gpu and e.key not in WAITS) / steps / 1000
            top = sorted(events, key=lambda e: -getattr(e, key))[:25]
            yield {
                "part": "profile", "by": label, "rays": run.rays, "wall_ms": wall, "busy_ms": busy, "cpu_ms": issuing, **count,
                "top": [{"name": e.key, "ms": getattr(e, key) / steps / 1000, "calls": e.count / steps} for e in top],
            }  # fmt: skip
        except Exception as e:
            yield trouble("profile", label) | failure(e)


# ---- the demo scene, from command to file


def scenes(names: Sequence[tuple[str, str]], folder: Path, out: Path, words: Sequence[str], deadline: float) -> Iterator[Row]:
    """`fastsurf reconstruct` as a process of its own for each (backend, precision): wall clock, phases, score against the truth."""
    truth, views = read_truth(folder), [view for view in load(folder).views if view.split == "train"]
    last = 0.0
    for name, precision in names:
        row: Row = {"part": "scene", "by": f"{name} {precision}"}
        if time.monotonic() + last > deadline:
            yield row | {"reason": "no time left"}
            continue
        began = time.monotonic()
        mesh, run = out / f"{name}-{precision}.ply", out / f"{name}-{precision}.run"
        options = ["-o", str(mesh), "--run", str(run), "--backend", name, "--precision", precision, "--quiet", *words]
        command = [sys.executable, "-P", "-m", "fastsurf", "reconstruct", str(folder), *options]  # -P: not what lies in this folder
        row["command"] = " ".join(command[3:])
        try:
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=max(deadline - began, 1))
            row["wall_s"] = time.monotonic() - began
            if done.returncode:
                yield row | {"ok": False, "reason": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
                continue
            events = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
            row["phases_s"] = {e["name"]: e["seconds"] for e in events if e["event"] == "phase_done"}
            final = [e for e in events if e["event"] == "step"][-1]
            row |= {"steps": final["step"], "psnr": final["psnr"], "samples_per_second": final["samples_per_second"]}
            row["score"] = score_mesh(read_mesh(mesh), truth, views)
        except Exception as e:
            row |= failure(e)
        last = time.monotonic() - began
        yield row


# ---- what is printed


def lines(row: Row) -> list[str]:
    """A row of the report for people."""
    match row["part"]:
        case "parity" if "results" in row:
            return [f"{row['check']:<20}{row['quantity']:<31}" + "  ".join(f"{label} {said(r)}" for label, r in row["results"].items())]
        case "trips" if "to" in row:
            parts = "  ".join(f"{k} {said(row[k])}" for k in ("level", "mesh", "picture", "resumed") if k in row)
            return [f"{row['from']:<13} -> {row['to']:<13} {passed(row)}  {parts}{row.get('reason', '')}"]
        case "speed" if "copy_gb_s" in row:
            return ["machine: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float))]
        case "speed" if "ms" in row:
            return speed_lines(row)
        case "profile" if "top" in row:
            head = f"{row['by']}: {row['rays']} rays a step, {row['wall_ms']:.2f} ms a step, {row['busy_ms']:.2f} ms of it busy, "
            top = [f"  {e['ms']:8.3f} ms {e['calls']:6.1f} calls  {e['name'][:90]}" for e in row["top"]]
            calls = f"{row['launches']:.0f} launches, {row['waits']:.0f} waits a step"
            return [head + f"{row['cpu_ms']:.2f} ms of the CPU under the profiler; {calls}", *top]
        case "scene" if "score" in row:
            s, phases = row["score"], " ".join(f"{k} {v:.1f}" for k, v in row["phases_s"].items())
            score = f"F 0.5 % {s['f_score_05']:.3f}, F 1 % {s['f_score']:.3f}, chamfer {s['chamfer_pct']:.3f} %"
            return [f"{row['by']:<13} {row['wall_s']:.1f} s ({phases}), {row['steps']} steps, {row['psnr']:.1f} dB, {score}, "
                    f"normals {s['normal_error_deg']:.1f} deg"]  # fmt: skip
    told = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in ("part", "ok", "trace"))
    return [f"{passed(row)}  {told}"]


def speed_lines(row: Row) -> list[str]:
    """Milliseconds by backend; a heading before each number of samples; after whole steps what they come to."""
    labels = [*row["ms"], *row["reasons"]]
    heading, name = f"{row['samples']:,} samples, {row['rays']:,} rays", f"{row['phase']}, ms"
    found = [f"  {name:<42}" + columns([f"{row['ms'][k]:.3f}" if k in row["ms"] else "FAIL" for k in labels])]
    found += [f"    {k}: {reason}" for k, reason in row["reasons"].items()]
    if row["phase"] == "step":
        for name, values, shape in (
            ("samples placed, M/s", {k: row["samples"] / ms / 1e3 for k, ms in row["ms"].items()}, ".2f"),
            ("samples evaluated with normals, M/s", {k: row["evaluated"][k] / ms / 1e3 for k, ms in row["ms"].items()}, ".2f"),
            ("peak memory, MiB", {k: m for k, m in row["memory"].items() if m is not None}, ".0f"),
        ):
            if values:
                found.append(f"  {name:<42}" + columns([format(values[k], shape) if k in values else "" for k in labels]))
    pairs = {p: (f"triton {p}", f"cuda {p}") for p in ("exact", "fast")}
    ratios = {p: row["ms"][a] / row["ms"][b] for p, (a, b) in pairs.items() if a in row["ms"] and b in row["ms"]}
    if ratios and row["phase"] in ("step", "field + backward"):
        found.append("    triton / cuda: " + ", ".join(f"{p} {r:.2f}" for p, r in ratios.items()))
    return ([f"{heading:<44}" + columns(labels)] if row["phase"] == PHASES[0] else []) + found


def columns(words: Sequence[str]) -> str:
    return "".join(f"{w:>15}" for w in words)


def said(result: Row) -> str:
    if "reason" in result:
        return f"FAIL ({result['reason']})"
    if "losses" in result:
        return "ok" if result["ok"] else "FAIL"
    if "tolerance" not in result:
        return f"{result['error']:.1e}"
    return f"{result['error']:.1e} {'<=' if result['ok'] else '> FAIL'} {result['tolerance']:.0e}"


def passed(row: Row) -> str:
    if "reason" in row and "ok" not in row:
        return "LEFT OUT"
    return "PASS" if row.get("ok", True) else "FAIL"


def failed(row: Row) -> bool:
    return not row.get("ok", True) or any(not r.get("ok", True) for r in row.get("results", {}).values())


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def failure(error: BaseException) -> Row:
    """What is kept of an exception: a line to print, and where it came from for the report alone."""
    return {"ok": False, "reason": one_line(error), "trace": traceback.format_exception(error)[-4:]}


def trouble(part: str, what: str, reason: str = "") -> Row:
    """A check that could not be made."""
    return {"part": part, "what": what, "ok": False, "reason": reason}


def plain(tree: Any) -> Any:
    """A tree that JSON can hold: numbers that are not finite become text."""
    if isinstance(tree, Mapping):
        return {str(k): plain(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(v) for v in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return str(tree)
    return tree


# ---- parts in their own processes


def environment() -> dict[str, str]:
    """For child processes: this very package."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])}


def machine() -> Row:
    """What the numbers were taken on."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def output(*command: str) -> str | None:
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
        except (OSError, subprocess.SubprocessError):
            return None

    cuda = torch.cuda.is_available()
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **{package: version(package) for package in ("torch", "triton", "tinycudann", "nerfacc", "numpy")},
        "fastsurf": fastsurf.__version__,
        "commit": output("git", "-C", str(PACKAGE), "describe", "--always", "--dirty"),
    }


def run_part(args: argparse.Namespace) -> int:
    """In a child process: one part, its rows printed and written as they come."""
    end = time.monotonic() + args.seconds

    def late() -> bool:
        return time.monotonic() > end

    backends: dict[str, Backend] = {}
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        print("\n".join(lines(row)), flush=True)
        Path(args.json).write_text(json.dumps(plain(rows)))

    for name in args.backends.split(","):
        for precision in ("exact", "fast"):
            try:
                b = choose_backend(name, precision=precision)
            except Exception as e:
                tell(trouble(args.part, f"{name} {precision}") | failure(e))
                continue
            if precision == "exact" or b.device.type == "cuda":
                backends[f"{name} {precision}"] = b
    if not backends:
        return 1
    device = next(iter(backends.values())).device
    exact = {label: b for label, b in backends.items() if label.endswith("exact")}
    if args.part == "parity":
        found = parity(backends, args.points, args.seeds, late)
    elif args.part == "trips":
        for name in ("native", "reference"):
            if f"{name} exact" not in exact:
                try:
                    exact[f"{name} exact"] = choose_backend(name)
                except Exception as e:
                    tell({"part": "trips", "what": name, "reason": one_line(e)})  # no matter where there is no compiler
        found = trips(exact, load_scene(args.scene), Path(args.json).parent, late=late)
    else:
        if args.part == "speed" and device.type == "cuda":
            backends["torch"] = ReferenceBackend(device=device)
        scene = load_scene(args.scene)
        sizes = [int(k) for k in args.samples.split(",")]
        if args.part == "speed":
            found = speed(backends, scene, sizes, args.repeats, sets=args.set, late=late)
        else:
            found = profile(backends, scene, args.set, late=late)
    for row in found:
        tell(row)
    return 0


def started(part: str, backends: Sequence[str], seconds: float, folder: Path, scene: Path, args: argparse.Namespace) -> list[Row]:
    """The rows of one part from a child process; its end, if that was early, is one more."""
    report = folder / f"{part}-{'-'.join(backends)}" / "rows.json"
    report.parent.mkdir()
    command = [sys.executable, __file__, "--part", part, "--backends", ",".join(backends), "--json", str(report), "--scene", str(scene),
               "--seconds", str(seconds), "--points", str(args.points), "--seeds", str(args.seeds), "--samples", args.samples,
               "--repeats", str(args.repeats), *[word for setting in args.set for word in ("--set", setting)]]  # fmt: skip
    what = None
    try:
        code = subprocess.run(command, env=environment(), timeout=seconds + 30).returncode
        what = f"the process ended with {code}" if code else None
    except subprocess.TimeoutExpired:
        what = f"hung: stopped after {seconds + 30:.0f} s"
    rows: list[Row] = json.loads(report.read_text()) if report.is_file() else []
    if what is not None:
        rows.append(trouble(part, " and ".join(backends), what))
        print("\n".join(lines(rows[-1])), flush=True)
    return rows


def wanted_backends(asked: str | None) -> tuple[list[str], list[str]]:
    """Names to check, and one line for each that can't be."""
    found = {f.name: f for f in survey()}
    names = asked.split(",") if asked else [name for name in CUDA_BACKENDS if name in found]
    usable = [name for name in names if name in found and found[name].usable]
    why = {name: " ".join(found[name].detail.split()) if name in found else "no such backend" for name in names}
    return usable, [f"{name}: {why[name]}" for name in names if name not in usable]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write everything that was found")
    parser.add_argument("--quick", action="store_true", help="parity, and the speed at 2^18 samples alone: under 2 minutes")
    parser.add_argument("--skip-scene", action="store_true", help="no reconstruction of the demo scene")
    parser.add_argument("--profile", action="store_true", help="also where a step's time goes")
    parser.add_argument("--backends", metavar="A,B", help="those to check; all usable of triton,cuda if not given")
    parser.add_argument("--only", metavar="A,B", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--points", type=int, default=4096, help="of the parity checks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", help="log2 of samples a step, in the order of timing")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--scene", metavar="DIR", help="a scene as demo_scene.py makes it; made in a temporary folder if not given")
    parser.add_argument("--scene-options", default="--minutes 0.4 --resolution 384", help="of fastsurf reconstruct")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for speed and profile: train.rays=8192")
    parser.add_argument("--seconds", type=float, default=450.0, help="when to stop beginning things")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        return run_part(args)

    end = time.monotonic() + args.seconds
    names, missing = wanted_backends(args.backends)
    if not names:
        wants = "gpu_check wants a GPU that a CUDA backend can use"
        print(f"{wants}; found {'; '.join(missing)}" + ("" if args.backends else " (--backends native,reference tries the tool on a CPU)"))
        return 1
    parts = ["parity", "speed"] if args.quick else list(PARTS)
    left_out = {part for part, out in (("profile", not args.profile), ("scene", args.skip_scene)) if out}
    parts = args.only.split(",") if args.only else [part for part in parts if part not in left_out]
    if not set(parts) <= set(PARTS):
        parser.error(f"--only wants some of {','.join(PARTS)}; found {args.only}")
    args.samples = args.samples or ("18" if args.quick else ",".join(map(str, SAMPLES)))
    about = machine()
    report: Row = {"machine": about, "survey": [dataclasses.asdict(f) for f in survey()], "rows": [], "seconds": {}}
    print(", ".join(f"{k} {v}" for k, v in about.items() if v is not None))
    print("\n".join(f"left out: {reason}" for reason in missing), end="\n" if missing else "")
    rows: list[Row] = report["rows"]
    if args.backends:
        rows += [trouble("start", *reason.split(": ", 1)) for reason in missing]

    def keep(part: str, began: float) -> None:
        report["seconds"][part] = round(time.monotonic() - began, 1)
        if args.json:
            Path(args.json).write_text(json.dumps(plain(report), indent=1) + "\n")

    def left(most: float) -> float:
        return max(min(most, end - time.monotonic()), 1.0)

    with tempfile.TemporaryDirectory() as temporary:
        folder, scene = Path(temporary), Path(args.scene) if args.scene else Path(temporary) / "scene"
        making = None
        if not args.scene and set(parts) - {"parity"}:  # while parity is checked
            few = ["--views", "16", "--test", "0", "--size", "160"] if args.quick else []
            making = subprocess.Popen([sys.executable, str(Path(__file__).with_name("make_scene.py")), str(scene), *few], env=environment())
        for part, groups, seconds in (
            ("parity", [[name] for name in names], 100.0), ("trips", [names], 70.0), ("speed", [names], 110.0), ("profile", [names], 50.0)
        ):  # fmt: skip
            if part in parts:
                began = time.monotonic()
                if making is not None and part != "parity":
                    making.wait()
                print(f"\n---- {part}", flush=True)
                for group in groups:
                    rows += started(part, group, left(seconds), folder, scene, args)
                    keep(part, began)
        if "scene" in parts:
            began = time.monotonic()
            if making is not None:
                making.wait()
            print(f"\n---- scene: fastsurf reconstruct {args.scene_options}", flush=True)
            on_gpu = any(name in CUDA_BACKENDS for name in names)
            for row in scenes([(n, p) for p in (("exact", "fast") if on_gpu else ("exact",)) for n in names], scene, folder,
                              args.scene_options.split(), end):  # fmt: skip
                rows.append(row)
                print("\n".join(lines(row)), flush=True)
                keep("scene", began)
    wrong = [row for row in rows if failed(row)]
    missing = sum(passed(row) == "LEFT OUT" for row in rows)
    checks = sum(len(row.get("results", [0])) for row in rows) - missing
    verdicts = f"{len(wrong)} rows FAIL" if wrong else f"all {checks} results PASS"
    print(f"\n{verdicts}{f', {missing} LEFT OUT' if missing else ''} ({sum(report['seconds'].values()):.0f} s)")
    for row in wrong:
        print("\n".join(lines(row)))
    report["ok"] = not wrong
    keep("end", time.monotonic())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
