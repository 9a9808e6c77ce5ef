"""The product: load → train → mesh → write. Start reading here.

A run folder holds config.toml, log.jsonl, checkpoint.safetensors, preview.png, first_mesh.ply (half-way), mesh.ply, mesh.json (what it
is), and cameras.json where cameras are learned; each is replaced whole or not at all. Photographs without cameras get them first, in the
folder poses.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy.typing as npt
import torch
from torch import Tensor

from . import __version__, meshio
from .appearance import MEAN
from .backends import Backend, choose_backend
from .backends.native import NativeBackend
from .checkpoint import read_header, resume, save_checkpoint
from .config import Config, check, to_toml
from .encoding import stable_finest
from .errors import MeshError, UsageError
from .export import Surface, paint, record, scale_factor
from .export import write as write_out
from .files import write_whole
from .formats.transforms import written
from .hooks import Hook, MeshProgress, Note, Phases, Saved, TrainState, announce, within
from .info import suggested_resolution, warnings
from .mesh import Mesh, clean, extract
from .methods import METHODS
from .model import Model
from .output import Output
from .pictures import preview, preview_png
from .poses import find_poses, is_bare
from .scene import Scene, load_scene
from .solidity import Report, inspect, simplify
from .training import Training, train
from .ui.jsonlines import JsonLines

CHECKPOINT, CONFIG, LOG, PREVIEW, MESH = "checkpoint.safetensors", "config.toml", "log.jsonl", "preview.png", "mesh.ply"
POSES = "poses"  # the scene made of photographs without cameras
CAMERAS = "cameras.json"  # the learned ones
FIRST_MESH, FIRST_MESH_AT = "first_mesh.ply", 0.5  # of the training
MESHING_TAKES = 2.0  # seconds, until the first mesh tells
MESH_GROWS = 3.0  # times as long for twice the resolution: between a curve's 2 and a surface's 4


@dataclass(frozen=True)
class Result:
    """What a reconstruction leaves behind."""

    run: Path
    mesh_path: Path
    mesh: Mesh  # as in mesh_path
    report: Report  # what it is
    state: TrainState | None  # the last step; None if none was made
    seconds: dict[str, float]  # by phase: poses (where there were no cameras), read, train, mesh
    stopped: bool  # before its time, by the user


def reconstruct(
    scene: Scene | str | Path,
    config: Config | None = None,
    *,
    run: str | Path,
    out: str | Path | None = None,
    output: Output | None = None,
    go_on: bool = False,
    force: bool = False,
    format: str | None = None,
    hooks: Sequence[Hook] = (),
    should_stop: Callable[[], bool] = lambda: False,
    began: float | None = None,
) -> Result:
    """Photographs with cameras in, a coloured mesh in their own coordinates out.

    Args:
        scene: a folder or file of photographs with cameras, or without (poses.py finds them first), or a video; or one already loaded.
        run: folder for the checkpoint and everything else that is kept.
        out: the mesh once more, by suffix .ply, .obj, .glb or .stl.
        output: what `out` is to be (export.py); RUN/mesh.ply stays as the field has it, in the input's units.
        go_on: continue the run that is in the folder.
        force: replace the run that is in the folder, file by file as the new ones are ready.
        format: name of the scene's format, where it can't be told.
        hooks: called with every event (hooks.py).
        should_stop: asked between steps; True ends the training early, and the mesh is still written.
        began: when the clock of `train.minutes` started, by `time.monotonic()`; now if not given. Finding cameras stops that clock.

    Raises:
        SceneError, ConfigError, CheckpointError, MeshError, BackendError: see errors.py; what was saved until then is kept.
    """
    began = time.monotonic() if began is None else began
    config, run = config or Config(), Path(run)
    check(config)
    out = Path(out) if out else None
    if (run / CHECKPOINT).exists() and not (go_on or force):
        raise UsageError(f"{run} already holds a run: continue it with --resume, or choose another folder with --run")
    if go_on:
        read_header(run / CHECKPOINT)
    output = output or Output()
    if out is not None:
        meshio.writer(out)
        output.check(out)
    log = JsonLines(run / LOG, append=go_on)
    try:
        with compute(config.backend, config.threads, config.precision) as backend:
            return _reconstruct(scene, config, backend, run, out, output, go_on, format, announce([log, *hooks]), should_stop, began)
    finally:
        log.close()


@contextlib.contextmanager
def compute(name: str = "auto", threads: int = 0, precision: str = "exact") -> Iterator[Backend]:
    """The backend, and torch's threads set to suit it for as long as it is in use.

    Between native calls torch only touches small tensors, where its threads gain little and, on a machine that does anything else
    besides, wait for each other: ten times slower steps were seen. So they all go to the native kernels.

    Args:
        threads: 0 takes as many as torch would.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        backend = choose_backend(name, threads or before, precision)
        if backend.name == "native":
            torch.set_num_threads(1)
        yield backend
    finally:
        torch.set_num_threads(before)


def _reconstruct(
    source: Scene | str | Path,
    config: Config,
    backend: Backend,
    run: Path,
    out: Path | None,
    output: Output,
    go_on: bool,
    format: str | None,
    events: Hook,
    should_stop: Callable[[], bool],
    began: float,
) -> Result:
    phases = Phases(events)
    if not isinstance(source, Scene) and format is None and is_bare(Path(source)):
        with phases("poses") as phase:
            placed = find_poses(
                source, run / POSES, config.poses, seed=config.train.seed, threads=config.threads, force=not go_on, hooks=[within(events)],
            )
            phase.detail = f"{len(placed.placed)} of {len(placed.placed) + len(placed.left_out)} photographs placed"
        source = placed.scene
        began += phases.seconds["poses"]
    with phases("read") as phase:
        scene = source if isinstance(source, Scene) else load_scene(source, config.scene, format)
        for note in [*scene.notes, *warnings(scene)]:
            events(Note(note))
        if backend.note:
            events(Note(backend.note))
        phase.detail = f"{len(scene.images)} photographs"
    config = fit_to(scene, config)
    if METHODS[config.method].wants_masks and scene.masks is None:
        events(Note(f"{config.method} learns the outline from masks, and there are none: expect a surface that bulges towards the cameras"))

    with phases("train") as phase:
        model = Model(config, backend, background_kind(scene, config), len(scene.capture.views))
        training = Training(scene, model, backend)
        if go_on:
            resume(run / CHECKPOINT, training)
        write_whole(run / CONFIG, to_toml(config).encode())
        if backend.capturable:
            events(Note("the GPU's kernels are compiled at the first run on a machine, which takes up to half a minute, and kept"))
        training.besides = time.monotonic() - began + MESHING_TAKES
        state = _train(training, run, events, should_stop)
        phase.detail = f"{training.step} steps"
    stopped = training.progress() < 1.0
    if model.corrections is not None:
        write_whole(run / CAMERAS, (json.dumps(written(model.corrections.views(scene)), indent=1) + "\n").encode())
        events(Saved("cameras", run / CAMERAS))

    with phases("mesh") as phase:
        model.set_progress(training.progress())
        mesh = make_mesh(model, scene.center, scene.radius, config, events)
        origin = f"from {scene.capture.path.name}"
        meshio.write_mesh(run / MESH, mesh, comments=(f"made by fastsurf {__version__} {origin}",))
        events(Saved("mesh", run / MESH))
        report = inspect(mesh.vertices, mesh.faces)
        record(run, MESH, report)
        if out is not None:
            mesh, report = write_out(out, Surface(mesh, model, scene.center, scene.radius), output, scene, events, (origin,))
            record(run, str(out), report, scale_factor(output.scale, scene.capture.views))
        phase.detail = f"{len(mesh.faces):,} faces"
    return Result(run, out or run / MESH, mesh, report, state, phases.seconds, stopped)


def _train(run: Training, folder: Path, events: Hook, should_stop: Callable[[], bool]) -> TrainState | None:
    """Drain the loop, saving and previewing by the clock. A first mesh is made half-way; it also tells how long the last one takes."""
    saved = shown = time.monotonic()
    state, t, meshed = None, run.config.train, False
    for state in train(run):
        events(state)
        if run.note:
            events(Note(run.note))
            run.note = ""
        now = time.monotonic()
        if now - shown >= t.preview_every or state.step == 20:
            shown = now
            events(preview(run.model, run.scene, state.step))
        if now - saved >= t.save_every:
            saved = now
            save_checkpoint(folder / CHECKPOINT, run)
            events(Saved("checkpoint", folder / CHECKPOINT))
        if not meshed and state.progress >= FIRST_MESH_AT:
            meshed = True
            run.besides += _first_mesh(run, folder, events) - MESHING_TAKES
        if should_stop():
            events(Note(f"stopped at step {state.step}; saving and meshing what is there"))
            break
    save_checkpoint(folder / CHECKPOINT, run)
    write_whole(folder / PREVIEW, preview_png(run.model, run.scene))
    events(Saved("checkpoint", folder / CHECKPOINT))
    return state


def _first_mesh(run: Training, folder: Path, events: Hook) -> float:
    """A mesh at half the resolution, for the impatient; returns the seconds that one at the full resolution will take."""
    config, start = run.config, time.monotonic()
    half = replace(config, mesh=replace(config.mesh, resolution=max(config.mesh.resolution // 2, 8)))
    grid = {name: t.clone() for name, t in run.model.grid.state_dict().items()}
    try:
        mesh = make_mesh(run.model, run.scene.center, run.scene.radius, half, lambda _: None)
    except MeshError:
        return MESHING_TAKES
    finally:
        run.model.grid.load_state_dict(grid)  # training goes on as if nobody had looked
    meshio.write_mesh(folder / FIRST_MESH, mesh, comments=(f"made by fastsurf {__version__}, half-way",))
    events(Saved("first mesh", folder / FIRST_MESH))
    return MESH_GROWS * (time.monotonic() - start)


def make_mesh(model: Model, center: npt.ArrayLike, radius: float, config: Config, events: Hook, view: int = MEAN) -> Mesh:
    """Level set, cleaned, coloured (as the photograph `view` was taken), in the input's own frame.

    Raises:
        MeshError: there is no surface, and why.
    """
    device = model.backend.device
    model.update_grid(torch.Generator(device).manual_seed(0), everywhere=True)
    c = config.mesh

    def level(x: Tensor) -> Tensor:
        return model.level(x.to(device))

    threads = model.backend.thread_count() if isinstance(model.backend, NativeBackend) else 0
    vertices, faces = extract(level, model.occupied, c.resolution, c.closed, lambda done: events(MeshProgress(done, "surface")), threads)
    vertices, faces = clean(vertices, faces, c.min_component, c.fill_cavities)
    if c.faces:
        vertices, faces = simplify(vertices, faces, c.faces)
    mesh = paint(model, center, radius, vertices, faces, c.colors, view)
    events(MeshProgress(1.0, "colours"))
    return mesh


def fit_to(scene: Scene, config: Config) -> Config:
    """What depends on the scene: unless it is configured, cells of the finest level are as large as a pixel on the object."""
    f = config.field
    finest = stable_finest(f.levels, f.log2_entries, f.base_resolution, f.finest_resolution or suggested_resolution(scene))
    return replace(config, field=replace(f, finest_resolution=finest))


def background_kind(scene: Scene, config: Config) -> str:
    """What lies behind the scene box: as configured, else random behind masks, else learned."""
    if config.scene.background != "auto":
        return config.scene.background
    return "random" if scene.masks is not None else "model"
