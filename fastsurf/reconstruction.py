"""The product: load → train → mesh → write. Start reading here.

A run folder holds begun.json (photographs and box), config.toml, log.jsonl, checkpoint.safetensors, preview.png, first_mesh.ply (half-way),
mesh.ply, mesh.json (what it is), points.npz where sparse points were made, cameras.json where cameras are learned, and preview.ply where it
was asked for; each is replaced whole or not at all. While a run is going it holds a lock. Photographs without cameras get them first, in
the folder poses.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import __version__, meshio
from .appearance import MEAN
from .backends import Backend, choose_backend
from .backends.native import NativeBackend
from .cameras import load_pycolmap
from .checkpoint import read_header, resume, save_begun, save_checkpoint
from .child import ChildError
from .config import Config, LossConfig, SceneConfig, check, to_toml
from .doctor import findings
from .encoding import stable_finest
from .errors import MeshError, ResourceError, SceneError, UsageError, lacks_memory
from .export import Surface, paint, record, scale_factor
from .export import write as write_out
from .extraction import BATCH
from .files import check_writable, sweep, whole, write_whole
from .formats.checks import ignore_folder, mask_folder
from .formats.transforms import written
from .hooks import Control, Event, Hook, MeshProgress, Note, Phases, Preview, Saved, TrainState, announce, within
from .info import suggested_resolution
from .landmarks import kept_points, plan, triangulate
from .locks import locked
from .memory import in_parts
from .mesh import Mesh, clean, extract
from .methods import METHODS
from .model import Model
from .output import Output, companions
from .pictures import last_preview, preview, preview_png
from .poses import find_poses, is_bare
from .scene import Scene, load_scene
from .solidity import Report, inspect, simplify
from .training import DEFAULT_MINUTES, Training, cells_along, train
from .ui.jsonlines import JsonLines
from .visibility import photographs_asked, times_shown, trim, trims

CHECKPOINT, CONFIG, LOG, PREVIEW, MESH = "checkpoint.safetensors", "config.toml", "log.jsonl", "preview.png", "mesh.ply"
POSES = "poses"  # the scene made of photographs without cameras
BEGUN = "begun.json"  # which photographs, in which box: what is known before there is a checkpoint
CAMERAS = "cameras.json"  # the learned ones
POINTS = "points.npz"  # sparse points made of the photographs
STEP_TAKES = {"cpu": 0.02, "cuda": 0.003}  # seconds, about
PREVIEW_MESH = "preview.ply"
FIRST_MESH, FIRST_MESH_AT = "first_mesh.ply", 0.5  # of the training
MESHING_TAKES = 2.0  # seconds, until the first mesh tells
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a limit on files
PATIENCE = 0.05  # seconds between two looks at the control of a paused run
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
    control: Control | None = None,
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
        control: pauses the training, and asks for files between steps. A pause stops the clock of `train.minutes`.
        began: when the clock of `train.minutes` started, by `time.monotonic()`; now if not given. Finding cameras stops that clock.

    Raises:
        SceneError, ConfigError, CheckpointError, MeshError, BackendError, ResourceError: see errors.py; what was saved until then is kept.
        UsageError: among others, another process is at work in the folder.
    """
    began = time.monotonic() if began is None else began
    config, run = config or Config(), Path(run)
    check(config)
    out = Path(out) if out else None
    output = output or Output()
    if out is not None:
        meshio.writer(out)
        output.check(out)
    for folder in [run, *([out.parent] if out else [])]:
        check_writable(folder)
    with locked(run):
        if (run / CHECKPOINT).exists() and not (go_on or force):
            raise UsageError(f"{run} already holds a run: continue it with --resume, or choose another folder with --run")
        if go_on:
            read_header(run / CHECKPOINT)
        sweep(run, run / POSES, *([out, *companions(out, bool(output.texture))] if out else []))
        log = JsonLines(run / LOG, append=go_on)
        others, told = announce(hooks), list[str]()

        def events(event: Event) -> None:
            log(event)
            others(event)
            if log.trouble and not told:
                told.append(log.trouble)
                others(Note(log.trouble))

        try:
            with compute(config.backend, config.threads, config.precision) as backend:
                return _reconstruct(
                    scene, config, backend, run, out, output, go_on, format, events, should_stop, control or Control(), began
                )
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
    control: Control,
    began: float,
) -> Result:
    phases = Phases(events)
    if not isinstance(source, Scene) and format is None and is_bare(Path(source)):
        with phases("poses") as phase:
            config = replace(config, scene=_with_folders(config.scene, Path(source)))
            masks = config.scene.masks if config.poses.masks == "auto" else config.poses.masks
            placed = find_poses(
                source, run / POSES, replace(config.poses, masks=masks), seed=config.train.seed, threads=config.threads,
                force=not go_on, invert_masks=config.scene.invert_masks, ignored=config.scene.ignore, hooks=[within(events)],
            )  # fmt: skip
            phase.detail = f"{len(placed.placed)} of {len(placed.placed) + len(placed.left_out)} photographs placed"
        source = placed.scene
        began += phases.seconds["poses"]
    with phases("read") as phase, explained("reading the photographs", f"--set scene.max_side={config.scene.max_side // 2}"):
        scene = source if isinstance(source, Scene) else load_scene(source, config.scene, format)
        for note in scene.notes:
            events(Note(note))
        for finding in findings(scene):
            if finding.severity == "broken" and config.scene.check == "refuse":
                raise SceneError(f"{finding} (--set scene.check=ignore goes on all the same)")
            events(Note(f"{finding.severity}: {finding}" if finding.severity != "note" else str(finding)))
        if backend.note:
            events(Note(backend.note))
        phase.detail = f"{len(scene.images)} photographs"
        _save_begun(run, scene, config, backend, events)
        located = find_landmarks(scene, config, backend, run, go_on, within(events))
        if located.box_source != scene.box_source:
            _save_begun(run, located, config, backend, events)
        scene = located
        if scene.landmarks is not None:
            phase.detail += f", {scene.landmarks.count:,} points"
    config = fit_to(scene, config)
    for note in without_effect(scene, config, backend):
        events(Note(note))
    if METHODS[config.method].wants_masks and scene.masks is None:
        events(Note(f"{config.method} learns the outline from masks, and there are none: expect a surface that bulges towards the cameras"))

    with phases("train") as phase, explained("training", _smaller(config), "the last checkpoint stays"):
        model = Model(config, backend, background_kind(scene, config), len(scene.capture.views))
        training = Training(scene, model, backend)
        if go_on:
            resume(run / CHECKPOINT, training)
        write_whole(run / CONFIG, to_toml(config).encode())
        if backend.capturable:
            events(Note("the GPU's kernels are compiled at the first run on a machine, which takes up to half a minute, and kept"))
        training.besides = (training.besides or MESHING_TAKES) + time.monotonic() - began
        state = _train(training, run, events, should_stop, control)
        phase.detail = f"{training.step} steps" + (f", {training.skipped} of them skipped" if training.skipped else "")
    stopped = training.progress() < 1.0
    if model.corrections is not None:
        write_whole(run / CAMERAS, (json.dumps(written(model.corrections.views(scene)), indent=1) + "\n").encode())
        events(Saved("cameras", run / CAMERAS))

    with phases("mesh") as phase, explained("meshing", *_mesh_again(run, config, backend.device.type)):
        model.set_progress(training.progress())
        mesh = make_mesh(model, scene.center, scene.radius, config, events, scene=scene)
        origin = f"from {scene.capture.path.name}"
        meshio.write_mesh(run / MESH, mesh, comments=(f"made by fastsurf {__version__} {origin}",))
        events(Saved("mesh", run / MESH))
        report = inspect(mesh.vertices, mesh.faces)
        record(run, MESH, report)
        if out is not None:
            mesh, report = write_out(out, Surface(mesh, model, scene.center, scene.radius, report=report), output, scene, events, (origin,))
            record(run, str(out), report, scale_factor(output.scale, scene.capture.views), output.points)
        if not (run / CHECKPOINT).exists() or read_header(run / CHECKPOINT).step != training.step:  # there was no room for it
            save_checkpoint(run / CHECKPOINT, training)
        phase.detail = f"{len(mesh.faces):,} faces"
    return Result(run, out or run / MESH, mesh, report, state, phases.seconds, stopped)


def _with_folders(config: SceneConfig, photographs: Path) -> SceneConfig:
    """Folders that may have been named from that of the photographs, in full: the scene that is made of these lies elsewhere."""
    masks = config.masks if config.masks in ("auto", "ignore") else str(mask_folder(photographs, config.masks).resolve())
    ignore = config.ignore if config.ignore in ("auto", "none") else str(ignore_folder(photographs, config.ignore).resolve())
    return replace(config, masks=masks, ignore=ignore)


def _save_begun(run: Path, scene: Scene, config: Config, backend: Backend, events: Hook) -> None:
    """For who looks at a run that has saved nothing yet."""
    with _optional(BEGUN, events):
        save_begun(run / BEGUN, scene, config, background_kind(scene, config), backend.device.type)


def find_landmarks(scene: Scene, config: Config, backend: Backend, run: Path, go_on: bool, events: Hook) -> Scene:
    """Sparse points for a scene without masks that brings none, in a share of the time there is, where its method uses them; see
    `Scene.with_points`."""
    kept, t = run / POINTS, config.train
    if go_on and kept.is_file():
        return scene.with_points(*kept_points(kept, len(scene.images)))
    if not go_on:
        kept.unlink(missing_ok=True)
    wanted = "points" in METHODS[config.method].losses and config.loss.points != 0 and config.scene.points == "auto"
    if go_on or not wanted or scene.masks is not None or scene.capture.sightings is not None or load_pycolmap() is None:
        return scene
    device = backend.device.type
    seconds = t.steps * STEP_TAKES[device] if t.steps is not None else 60.0 * (t.minutes or DEFAULT_MINUTES[device])
    planned = plan([scene.shapes[i] for i in scene.train], seconds)
    if planned is None:
        events(Note("no time for sparse points, which make scenes without masks much better: give more --minutes"))
        return scene
    step, size = planned
    threads = config.threads or os.cpu_count() or 1
    try:
        points, sightings = triangulate(
            scene.capture, scene.images, scene.train[::step], scene.center, size, run / f".{POINTS}", seed=t.seed, threads=threads,
            on_progress=lambda done, what: events(MeshProgress(done, what)),
        )  # fmt: skip
        with whole(kept) as file:
            np.savez(file, points=points, sightings=sightings)
    except (ChildError, OSError) as e:
        events(Note(f"went on without sparse points: {e}"))
        return scene
    located = scene.with_points(points, sightings)
    if located is scene:
        events(Note(f"went on without sparse points: the photographs share only {len(points)} that could be placed"))
    if located.box_source != scene.box_source:
        events(Note(f"the scene box, a guess from the cameras, was chosen again from {located.box_source}"))
    return located


@contextlib.contextmanager
def explained(doing: str, smaller: str, kept: str = "") -> Iterator[None]:
    """Files that can't be written and memory that isn't there become one line.

    Args:
        doing: what failed.
        smaller: what would take less memory.
        kept: what there is all the same; '' leaves errors about files as they are.

    Raises:
        ResourceError: that line.
    """
    try:
        yield
    except OSError as e:
        if not kept:
            raise
        cause = "the disk is full" if e.errno in FULL else f"{doing}: {e.strerror or e}"
        raise ResourceError(f"{cause} ({e.filename}): {kept}" if e.filename else f"{cause}: {kept}") from e
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e):
            raise
        raise ResourceError(f"out of memory in {doing}; less takes {smaller}" + (f": {kept}" if kept else "")) from e


def _smaller(config: Config) -> str:
    f = config.field
    sets = {"train.rays": config.train.rays or "automatic", "field.log2_entries": f.log2_entries, "field.levels": f.levels}
    return "a lower " + ", ".join(f"{name} ({now})" for name, now in sets.items()) + f" or scene.max_side ({config.scene.max_side})"


def _mesh_again(run: Path, config: Config, device: str) -> tuple[str, str]:
    """For `explained`."""
    again = f"what was learned is in {run / CHECKPOINT}, and `fastsurf mesh {run} -o FILE` makes the mesh from it"
    return f"--resolution {max(cells_along(config, device) // 2, 8)}", again


def _train(run: Training, folder: Path, events: Hook, should_stop: Callable[[], bool], control: Control) -> TrainState | None:
    """Drain the loop, saving and previewing by the clock. A first mesh is made half-way; it also tells how long the last one takes."""
    saved = shown = time.monotonic()
    state, t, turn, room = None, run.config.train, 0, True

    def half_mesh(name: str, what: str) -> float:
        start = time.monotonic()
        takes = _half_mesh(run, folder / name, what, events)
        run.aside += time.monotonic() - start
        return takes

    def show() -> None:
        nonlocal shown, turn, room
        shown, turn = time.monotonic(), turn + 1
        picture = preview(run.model, run.scene, turn)
        events(picture)
        room = room and _keep_preview(folder, picture, run.step, events)  # it is said once

    def obey() -> None:
        for wish in control.wishes():
            if wish == "save":
                _save(folder, run, events)
            elif wish == "mesh":
                half_mesh(PREVIEW_MESH, "preview mesh")
            elif wish == "view":
                show()

    for state in train(run):
        events(state)
        if run.note:
            events(Note(run.note))
            run.note = ""
        now = time.monotonic()
        if now - shown >= t.preview_every or state.step == 20:
            show()
        if now - saved >= t.save_every:
            saved = now
            _save(folder, run, events)
        if not run.meshed and state.progress >= FIRST_MESH_AT:
            run.meshed = True
            run.besides += half_mesh(FIRST_MESH, "first mesh") - MESHING_TAKES
        obey()
        start, aside = time.monotonic(), run.aside
        while control.paused and not should_stop():
            obey()
            time.sleep(PATIENCE)
        run.paused, run.aside = time.monotonic() - start, aside
        if should_stop():
            events(Note(f"stopped at step {state.step}; saving and meshing what is there"))
            break
    _save(folder, run, events)
    _keep_preview(folder, last_preview(run.model, run.scene, small=run.short), run.step, events)
    return state


def _keep_preview(folder: Path, shown: Preview, step: int, events: Hook) -> bool:
    """Whether there was room for it."""
    written = False
    with _optional("the preview", events):
        write_whole(folder / PREVIEW, preview_png(shown, step))
        written = True
    return written


def _save(folder: Path, run: Training, events: Hook) -> None:
    """A checkpoint. Where it can't be written, the one before stays and training goes on."""
    with _optional("the checkpoint", events):
        save_checkpoint(folder / CHECKPOINT, run)
        events(Saved("checkpoint", folder / CHECKPOINT))


@contextlib.contextmanager
def _optional(what: str, events: Hook) -> Iterator[None]:
    """What the run can go on without becomes a note where it can't be written."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as e:
        if not (isinstance(e, OSError) or lacks_memory(e)):
            raise
        cause = e.strerror if isinstance(e, OSError) else "out of memory"
        events(Note(f"{what} could not be written ({cause}): the run goes on, what was saved before stays"))


def _half_mesh(run: Training, path: Path, what: str, events: Hook) -> float:
    """A mesh at half the resolution, for the impatient; returns the seconds that one at the full resolution will take."""
    config, start = run.config, time.monotonic()
    half = replace(config, mesh=replace(config.mesh, resolution=max(cells_along(config, run.backend.device.type) // 2, 8)))
    grid = {name: t.clone() for name, t in run.model.grid.state_dict().items()}
    try:
        mesh = make_mesh(run.model, run.scene.center, run.scene.radius, half, lambda _: None, scene=run.scene)
    except MeshError:
        return MESHING_TAKES
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e):
            raise
        events(Note(f"there was no memory for the {what}: the run goes on"))
        return MESHING_TAKES
    finally:
        run.model.grid.load_state_dict(grid)  # training goes on as if nobody had looked
    with _optional(f"the {what}", events):
        meshio.write_mesh(path, mesh, comments=(f"made by fastsurf {__version__} after {run.step} steps",))
        events(Saved(what, path))
    inspect(mesh.vertices, mesh.faces)  # takes its time at the end, too
    return MESH_GROWS * (time.monotonic() - start)


def make_mesh(
    model: Model, center: npt.ArrayLike, radius: float, config: Config, events: Hook, view: int = MEAN, scene: Scene | None = None
) -> Mesh:
    """Level set, cleaned, coloured (as the photograph `view` was taken), in the input's own frame.

    Args:
        scene: the photographs, where what they don't show is to be dropped (`mesh.shown_by`).

    Raises:
        MeshError: there is no surface, and why.
    """
    device = model.backend.device
    model.update_grid(torch.Generator(device).manual_seed(0), everywhere=True)
    c = config.mesh

    def level(x: Tensor) -> Tensor:
        return torch.cat(list(in_parts(lambda part: model.level(x[part].to(device)), len(x), BATCH, events)))

    threads = model.backend.thread_count() if isinstance(model.backend, NativeBackend) else 0
    resolution = cells_along(config, device.type)
    vertices, faces = extract(level, model.occupied, resolution, c.closed, lambda done: events(MeshProgress(done, "surface")), threads)
    vertices, faces = clean(vertices, faces, c.min_component, c.fill_cavities, spare_long=model.background is None)
    if scene is not None and trims(c, scene.masks is not None):
        before, asked = len(faces), photographs_asked(c, scene, vertices, faces)
        fewer = {None: "too few photographs show", 1: "no photograph shows"}.get(c.shown_by, f"fewer than {c.shown_by} photographs show")
        shown = times_shown(model, scene, vertices, faces, asked, events) >= asked
        vertices, faces = trim(vertices, faces, shown, c.min_component)
        if not shown.any():
            events(Note(f"all faces stay, though {fewer} any of them (mesh.shown_by)"))
        elif len(faces) < before:
            events(Note(f"left out {1 - len(faces) / before:.0%} of the faces, which {fewer} (mesh.shown_by)"))
    if c.faces:
        vertices, faces = simplify(vertices, faces, c.faces)
    mesh = paint(model, center, radius, vertices, faces, c.colors, view, events)
    events(MeshProgress(1.0, "colours"))
    return mesh


def fit_to(scene: Scene, config: Config) -> Config:
    """What depends on the scene: unless it is configured, cells of the finest level are as large as a pixel on the object."""
    f = config.field
    finest = stable_finest(f.levels, f.log2_entries, f.base_resolution, f.finest_resolution or suggested_resolution(scene))
    return replace(config, field=replace(f, finest_resolution=finest))


def without_effect(scene: Scene, config: Config, backend: Backend) -> list[str]:
    """What was set, but changes nothing here, a line each."""
    method, losses = METHODS[config.method], {name for other in METHODS.values() for name in other.losses}
    others = [n for n in sorted(losses - set(method.losses)) if getattr(config.loss, n) not in (0.0, getattr(LossConfig(), n))]
    found = [f"loss.{name} has no effect: {config.method} has no such loss" for name in others]
    if config.precision == "fast" and backend.device.type == "cpu":
        found.append("precision fast has no effect on a CPU")
    if method.wants_masks and scene.masks is not None and background_kind(scene, config) == "model":
        found.append(f"scene.background=model has no effect: {config.method} learns colours within masks alone")
    return found


def background_kind(scene: Scene, config: Config) -> str:
    """What lies behind the scene box: as configured, else random behind masks, else learned."""
    if config.scene.background != "auto":
        return config.scene.background
    return "random" if scene.masks is not None else "model"
