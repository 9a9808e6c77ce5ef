"""What can be done with a run afterwards (or while it is still going, from its last checkpoint): mesh, pictures, scores."""

import importlib.util
import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__, guard
from .appearance import MEAN
from .backends import Backend
from .cameras import up_of
from .checkpoint import Header, load_model, read_header
from .color import ColorHead
from .errors import CheckpointError, SceneError, UsageError
from .export import Surface, record, scale_factor
from .export import write as write_out
from .files import png, whole, write_whole
from .formats import transforms
from .hooks import Hook, MeshProgress, Note, Pace, Saved, announce
from .mesh import Mesh
from .meshio import read_mesh, writer
from .methods.nerf import thinnest_kept
from .metrics import WINDOW, Threshold, measure, picture_scores, read_truth, scores_of, sweep
from .model import Model
from .output import Output
from .pictures import Orbit, fit_appearance, normal_picture, orbit_of, orbit_rays, render_rays, surface_depth, to_bytes
from .rays import Rays
from .reconstruction import CHECKPOINT, MESH, compute, make_mesh
from .scene import Scene, load_scene
from .solidity import Report
from .ui.jsonlines import finite
from .unfinished import Unfinished
from .visibility import trims

ORBIT_FRAMES, ORBIT_SIZE = 60, 400  # pictures, pixels
ORBIT_VIEW = (0.7, 1.2)  # field of view in radians: that of the photographs' longer side, within these
FRAME_MS = 66
ANIMATIONS = ("webp", "gif", "mp4")


def open_run(run: str | Path, backend: Backend, density: float | None = None) -> tuple[Header, Model]:
    """The model of a run as its last checkpoint left it, and what that says.

    Args:
        density: per scene unit, where the surface is taken to be instead of at `field.density_level`.

    Raises:
        CheckpointError: there is none, or it can't be read.
        UsageError: a density, but the method has none.
    """
    path = Path(run) / CHECKPOINT
    header = read_header(path)
    if density is not None:
        if header.config.method != "nerf":
            raise UsageError(f"{run} was made by {header.config.method}, which has no density to choose: want a run of --method nerf")
        header = replace(header, config=replace(header.config, field=replace(header.config.field, density_level=density)))
    model = Model(header.config, backend, header.background, len(header.photographs))
    load_model(path, model)
    model.set_progress(header.progress)
    return header, model


def open_scene(header: Header) -> Scene:
    """The photographs of a run, with the scene box that it used.

    Raises:
        CheckpointError: they are no longer where they were, or no longer the same ones.
        SceneError: one of them can't be read.
    """
    if not Path(header.scene).exists():
        raise CheckpointError(f"the photographs of this run are gone: it was made from {header.scene}")
    config = replace(header.config.scene, center=header.center, radius=header.radius)
    scene = load_scene(header.scene, config, header.scene_format)
    names = tuple(view.name for view in scene.capture.views)
    if header.photographs and names != header.photographs:
        gone = [name for name in header.photographs if name not in names]
        which = f"{gone[0]} is gone" + (f" with {len(gone) - 1} others" if gone[1:] else "") if gone else "there are others"
        raise CheckpointError(f"the photographs in {header.scene} are no longer those of the run: {which}; put it back, or start again")
    return scene


def mesh_run(
    run: str | Path,
    out: str | Path,
    resolution: int | None = None,
    closed: bool | None = None,
    backend: str = "auto",
    threads: int = 0,
    hooks: Sequence[Hook] = (),
    density: float | None = None,
    appearance: str | None = None,
    output: Output | None = None,
) -> tuple[Mesh, Report]:
    """Mesh again, at another resolution, open at the scene box, at another density, in other colours, or as something else; in the
    input's own frame. The mesh as it was written (or that the points lie on), and what it is; RUN/mesh.json keeps what is in the file.

    Args:
        density: see `open_run`.
        appearance: name of the photograph that the colours are of; mean or None: of none of them.
        output: see export.py.

    Raises:
        UsageError: so thin that the occupancy grid may have culled it; no such photograph, or all have one appearance; see `Output`.
        CheckpointError: the photographs are wanted, and gone.
    """
    out, output, events = Path(out), output or Output(), announce(hooks)
    writer(out)
    output.check(out)
    with compute(backend, threads) as kernels:
        header, model = open_run(run, kernels, density)
        thinnest = thinnest_kept(model.grid)
        if density is not None and not density > thinnest:
            raise UsageError(f"density {density:g}: what is no denser than {thinnest:.3g} is not looked at; want more")
        mesh = header.config.mesh
        mesh = replace(mesh, resolution=resolution or mesh.resolution, closed=mesh.closed if closed is None else closed)
        if output.watertight and not mesh.closed:
            raise UsageError("a mesh that is open where the scene box cuts it (--open, mesh.closed=false) can't be watertight as well")
        view = MEAN if appearance is None else header.photograph(appearance)
        masks = header.config.scene.background == "auto" and header.background == "random"  # background_kind
        trimmed = trims(mesh, masks)
        scene = open_scene(header) if output.wants_photographs else _scene_to_trim(header, events) if trimmed else None
        scale = scale_factor(output.scale, scene.capture.views if scene is not None else ())
        made = make_mesh(model, header.center, header.radius, replace(header.config, mesh=mesh), events, view, scene)
        surface = Surface(made, model, np.asarray(header.center, np.float64), header.radius, view)
        written, report = write_out(out, surface, output, scene, events)
    record(Path(run), str(out), report, scale, output.points)
    return written, report


def _scene_to_trim(header: Header, events: Hook) -> Scene | None:
    """The photographs, where they are still there: else the mesh keeps what they don't show."""
    try:
        return open_scene(header)
    except (CheckpointError, SceneError) as e:
        events(Note(f"what no photograph shows stays in the mesh: {e}"))
        return None


def render_run(
    run: str | Path,
    views: str,
    out: str | Path,
    backend: str = "auto",
    threads: int = 0,
    hooks: Sequence[Hook] = (),
    appearance: str | None = None,
    renderer: str | Path | None = None,
    animation: str = "webp",
) -> list[Path]:
    """Pictures of a run: OUT/NAME.png, OUT/normal/NAME.png, OUT/depth/NAME.npy (float32, along the ray, input units) and .png.
    Interrupted, the same call goes on where it was.

    Args:
        views: test | train, the photographs' views by their own names; orbit, a way round the object, or there and back before the side
            that was photographed, also as OUT/orbit.webp.
        animation: webp | gif | mp4 (with imageio-ffmpeg), what the orbit's is.
        appearance: name of the photograph that all pictures look like, or mean; None: each training view like its own.
        renderer: another run, whose colour head takes the place of this one's (IDR, section 4.4: its appearance on this geometry).

    Raises:
        UsageError: an unknown kind of views, or none of that kind in the scene; no such photograph, or all have one appearance; a
            renderer that doesn't fit.
    """
    if views not in ("test", "train", "orbit"):
        raise UsageError(f"--views wants test, train or orbit; found {views!r}")
    if animation not in ANIMATIONS:
        raise UsageError(f"--format wants {', '.join(ANIMATIONS)}; found {animation!r}")
    if views == "orbit" and animation == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsageError("an .mp4 needs imageio-ffmpeg, which is not installed: pip install 'fastsurf[video]'; or take --format gif")
    out, events = Path(out), announce(hooks)
    with compute(backend, threads) as kernels:
        header, model = open_run(run, kernels)
        if renderer is not None:
            model.head = _head_of(renderer, header, kernels)
        pictures = begun(run, views, out, backend, appearance=appearance, renderer=renderer)
        shown = None if appearance is None else header.photograph(appearance)
        written = _render(header, model, views, out, events, shown, animation, pictures)
    pictures.finish()
    events(Saved("pictures", out))
    return written


def begun(
    run: str | Path, views: str, out: str | Path, backend: str = "auto", *, appearance: str | None = None,
    renderer: str | Path | None = None, depth_scale: str | None = None,
) -> Unfinished:  # fmt: skip
    """What an interrupted `render_run`, or with `depth_scale` a `depth_run`, of the very same model left in `out`."""
    about: list[object] = [__version__, views, backend, appearance, depth_scale]
    for folder in (run, *([renderer] if renderer is not None else [])):
        file = (Path(folder) / CHECKPOINT).absolute()
        about.append([str(file), *((file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else ())])
    return Unfinished(Path(out), about)


def _head_of(run: str | Path, wanted: Header, backend: Backend) -> ColorHead:
    """The colour head of a run, for a model as `wanted` has it."""
    header, model = open_run(run, backend)
    then, now = ({"method": h.config.method, **{f"color.{k}": v for k, v in asdict(h.config.color).items()}} for h in (header, wanted))
    for name in now:
        if then[name] != now[name]:
            raise UsageError(f"the renderer of {run} doesn't fit: its {name} is {then[name]}, that of the geometry {now[name]}")
    return model.head


def _render(
    header: Header, model: Model, views: str, out: Path, events: Hook, shown: int | None, animation: str, made: Unfinished
) -> list[Path]:
    names, cameras = _orbit(header) if views == "orbit" else _photographed(open_scene(header), views)
    files = {name: [out / f"{name}.png", *(out / part for part in _beside(name))] for name in names}
    kept = [name for name in names if made.has(name, files[name])]
    done, pace = len(kept), Pace(events, len(kept) / len(names))
    made.start()
    for name, (rays, (h, w)) in zip(names, cameras, strict=True):
        if name in kept:
            continue
        if shown is not None:
            rays = replace(rays, image_index=torch.full_like(rays.image_index, shown))
        rendering = render_rays(model, rays, events, pace.part(done, len(names), f"{name}.png"))
        depth = (rendering.depth * header.radius).numpy().reshape(h, w)
        pictures = (
            png(to_bytes(rendering.rgb).reshape(h, w, 3)),
            png(to_bytes(normal_picture(rendering)).reshape(h, w, 3)),
            png(_depth_picture(depth, rendering.opacity.numpy().reshape(h, w))),
            _npy(depth),
        )
        for file, data in zip(files[name], pictures, strict=True):
            write_whole(file, data)
        made.add(name)
        done += 1
        events(Saved("picture", files[name][0]))
    written = [file for name in names for file in files[name]]
    if views == "orbit":
        written.append(out / f"orbit.{animation}")
        write_animation(written[-1], [_colours(files[name][0]) for name in names])
    return written


def _beside(name: str) -> tuple[str, str, str]:
    """The files that are made with NAME.png."""
    return f"normal/{name}.png", f"depth/{name}.png", f"depth/{name}.npy"


def _colours(file: Path) -> np.ndarray:
    """(h, w, 3) uint8 of a picture."""
    with guard.picture(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _photographed(scene: Scene, kind: str) -> tuple[list[str], Iterator[tuple[Rays, tuple[int, int]]]]:
    """Names of pictures of the test or train views; their rays, and height and width, one after the other."""
    views = _views(scene, kind)
    return [name for name, _ in views], (scene.rays(i) for _, i in views)


def _views(scene: Scene, kind: str) -> list[tuple[str, int]]:
    """Names for pictures of the test or train views, and their indices."""
    index = scene.test if kind == "test" else scene.train
    if not index:
        raise UsageError(f"the run has no {kind} views: reconstruct with --holdout 8, or use --views train")
    return list(zip(picture_names([scene.capture.views[i].name for i in index]), index, strict=True))


def depth_run(
    run: str | Path, views: str, out: str | Path, backend: str = "auto", threads: int = 0, hooks: Sequence[Hook] = (), scale: str = "1"
) -> list[Path]:
    """Depth of the surface for other programs: along the camera's axis (not along the ray), 0 where there is no surface. Interrupted,
    the same call goes on where it was.

    OUT/NAME.npy is float32 in the input's units; OUT/NAME.png has 16 bits, of which one step is `depth_unit` in OUT/cameras.json (and in
    the text of the .png). That file holds the cameras as transforms.json does, distortion included.

    Args:
        views: test | train.
        scale: multiplies depths and the cameras' places, as of a mesh (output.py).

    Raises:
        UsageError: an unknown kind of views, or none of that kind in the scene; a scale that makes no sense.
        CheckpointError: the photographs are gone.
    """
    if views not in ("test", "train"):
        raise UsageError(f"--depth wants --views test or --views train; found {views!r}")
    out, events = Path(out), announce(hooks)
    with compute(backend, threads) as kernels:
        header, model = open_run(run, kernels)
        scene = open_scene(header)
        cameras = _views(scene, views)
        factor = scale_factor(scale, scene.capture.views)
        taken = scene.capture.views if model.corrections is None else model.corrections.views(scene)
        made = begun(run, views, out, backend, depth_scale=scale)
        files = {name: out / f"{name}.npy" for name, _ in cameras}
        kept = [name for name in files if made.has(name, [files[name]])]
        done, pace = len(kept), Pace(events, len(kept) / len(cameras))
        made.start()
        for name, i in cameras:
            if name in kept:
                continue
            rays, (h, w) = scene.rays(i)
            hit, t = surface_depth(model, rays, events, pace.part(done, len(cameras), files[name].name))
            forward = torch.from_numpy(scene.capture.views[i].c2w[:, 2]).float()
            along = torch.where(hit, t * (rays.directions @ forward), 0.0).view(h, w)
            write_whole(files[name], _npy(factor * header.radius * along.numpy()))
            made.add(name)
            done += 1
            events(Saved("picture", files[name]))
    furthest = max(float(guard.read_arrays(file)[""].max()) for file in files.values())
    unit = 10.0 ** math.ceil(math.log10(furthest / 65535)) if furthest > 0 else 1.0
    written = []
    for file in files.values():
        steps = np.rint(guard.read_arrays(file)[""] / unit).astype(np.uint16)
        write_whole(file.with_suffix(".png"), png(steps, depth_unit=f"{unit:g}"))
        written += [file, file.with_suffix(".png")]
    moved = [replace(taken[i], c2w=taken[i].c2w * [1, 1, 1, factor]) for _, i in cameras]
    tree = {"depth": "along the camera's axis; 0: nothing", "depth_unit": unit, "scale": factor, **transforms.written(moved)}
    for frame, (name, _) in zip(tree["frames"], cameras, strict=True):
        frame["depth_path"] = f"{name}.png"
    write_json(out / "cameras.json", tree)
    made.finish()
    events(Saved("pictures", out))
    return [*written, out / "cameras.json"]


def picture_names(photographs: Sequence[str]) -> list[str]:
    """Names for pictures of these photographs, without suffix and unlike each other: their own; where two are alike, those with the folders
    before them, then with the suffix too, then with a number."""
    paths = [Path(name).relative_to(Path(name).anchor) for name in photographs]
    choices = (
        [path.stem for path in paths],
        ["_".join(path.with_suffix("").parts) for path in paths],
        whole_names := ["_".join(path.parts).replace(".", "_") for path in paths],
    )
    numbered = [f"{i:04d}_{name}" for i, name in enumerate(whole_names)]
    return next((names for names in choices if len(set(names)) == len(names)), numbered)


def eval_run(
    run: str | Path,
    truth: str | Path | None = None,
    mesh: str | Path | None = None,
    backend: str = "auto",
    threads: int = 0,
    hooks: Sequence[Hook] = (),
    thresholds: Sequence[Threshold] = (),
    fit: bool = False,
) -> dict[str, Any]:
    """Scores of a run.

    Args:
        truth: a mesh, points (.npz with points and normals), or a folder with gt/, in the input's frame.
        mesh: what is scored against the truth; RUN/mesh.ply if not given.
        thresholds: at which precision, recall and F1 are wanted besides.
        fit: the appearance of each held-out view is learned from its left half, and its right half is scored.

    Returns:
        `psnr`, `ssim` (means over held-out views; None without any, or all too small for SSIM), `views` (each by name), and `mesh` with
        Chamfer distance, F-scores and normal error where a truth is given; its `sweep` is a list with an entry for each threshold.

    Raises:
        UsageError: a mesh or thresholds, but nothing to score against; appearances to fit in a run that has none.
    """
    if truth is None and (mesh is not None or thresholds):
        raise UsageError(f"nothing to score {mesh or Path(run) / MESH} against: want a true surface, --gt MESH")
    known = read_truth(Path(truth)) if truth is not None else None
    made = read_mesh(Path(mesh) if mesh else Path(run) / MESH) if known is not None else None
    events = announce(hooks)
    with compute(backend, threads) as kernels:
        header, model = open_run(run, kernels)
        if fit and model.appearance is None:
            raise UsageError("--fit-appearance: the run has one appearance for all photographs: reconstruct with --method wild")
        scene = open_scene(header)
        if not scene.test:
            events(Note("no view was held out, so no picture is scored: reconstruct with --holdout 8"))
        views = _score_views(scene, model, events, fit)
    similar = [v["ssim"] for v in views.values() if "ssim" in v]
    if len(similar) < len(views):
        events(Note(f"{len(views) - len(similar)} of {len(views)} views have no SSIM, which wants {WINDOW} pixels along each side"))
    scores: dict[str, Any] = {
        "psnr": float(np.mean([v["psnr"] for v in views.values()])) if views else None,
        "ssim": float(np.mean(similar)) if similar else None,
        "views": views,
        "step": header.step,
        "seconds": header.seconds,
    }
    if known is not None and made is not None:
        events(MeshProgress(0.0, "distances to the truth"))
        measured = measure(made, known, [scene.capture.views[i] for i in scene.train])
        scores["mesh"] = {**scores_of(measured), **({"sweep": sweep(measured, thresholds)} if thresholds else {})}
    return scores


def _score_views(scene: Scene, model: Model, events: Hook, fit: bool) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of each held-out view, or of its right half; behind masks both show the same plain background, unless it is learned."""
    views, pace = {}, Pace(events)
    for done, i in enumerate(scene.test):
        name = scene.capture.views[i].name
        rays, (h, w) = scene.rays(i)
        photo, counts = expected(scene, i, model.background_kind)
        if fit:
            left = counts & (np.arange(w) < w // 2)
            fit_appearance(model, rays[torch.from_numpy(left.reshape(-1))], torch.from_numpy(photo[left]).float(), i)
        scored = slice(w // 2 if fit else 0, w)
        rays, photo, counts = rays[torch.arange(h * w).view(h, w)[:, scored].reshape(-1)], photo[:, scored], counts[:, scored]
        picture = render_rays(model, rays, events, pace.part(done, len(scene.test), name)).rgb.numpy().reshape(photo.shape)
        picture = np.where(counts[..., None], picture, photo)
        views[name] = picture_scores(picture, photo, counts)
    return views


def expected(scene: Scene, i: int, background: str) -> tuple[np.ndarray, np.ndarray]:
    """What view i should show, (h, w, 3) in [0, 1], and which pixels count, (h, w) bool.

    Args:
        background: random | white | black | model, what the model shows behind masks.
    """
    photo = scene.images[i].numpy() / 255.0
    if scene.masks is not None and background != "model":
        alpha = scene.masks[i].numpy()[..., None] / 255.0
        photo = photo * alpha + (0.0 if background == "black" else 1.0) * (1.0 - alpha)
    return photo, np.ones(photo.shape[:2], bool) if scene.ignored is None else ~scene.ignored[i].numpy()


def write_json(path: str | Path, tree: object) -> None:
    """A JSON file, whole or not at all; numbers that are not finite become null."""
    write_whole(Path(path), (json.dumps(finite(tree), indent=1) + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any] | None:
    """None where there is no such file. Files are written whole, so what is there can be read."""
    tree: dict[str, Any] | None = guard.read_json(Path(path)) if Path(path).is_file() else None
    return tree


def _orbit(header: Header) -> tuple[list[str], Iterator[tuple[Rays, tuple[int, int]]]]:
    """As `_photographed`: a way past the cameras that sees what they see, if the photographs are still there; else a circle above the box's
    equator."""
    try:
        scene = open_scene(header)
        views = [scene.capture.views[i] for i in scene.train]
        poses = np.stack([view.c2w for view in views])
        widest = np.median([max(v.camera.width / v.camera.focal[0], v.camera.height / v.camera.focal[1]) for v in views])
        field_of_view = float(np.clip(2.0 * np.arctan(0.5 * widest), *ORBIT_VIEW))
        orbit = orbit_of(scene.to_scene(poses[:, :, 3]), up_of(poses), ORBIT_FRAMES, field_of_view)
    except (CheckpointError, SceneError):
        orbit = Orbit(np.array([0.0, 0.0, 1.0]), np.linspace(0.0, 2.0 * np.pi, ORBIT_FRAMES, endpoint=False), 0.35, 3.0, ORBIT_VIEW[0])
    names = [f"orbit_{k:03d}" for k in range(len(orbit.azimuths))]
    return names, ((rays, (ORBIT_SIZE, ORBIT_SIZE)) for rays in orbit_rays(orbit, ORBIT_SIZE))


def _depth_picture(depth: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Near is bright; black where nothing is."""
    solid = opacity > 0.5
    if not solid.any():
        return np.zeros(depth.shape, np.uint8)
    near, far = np.percentile(depth[solid], [1, 99])
    bright = 1.0 - 0.85 * np.clip((depth - near) / max(far - near, 1e-9), 0, 1)
    return np.where(solid, bright * 255, 0).astype(np.uint8)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array.astype(np.float32))
    return buffer.getvalue()


def write_animation(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Pictures (h, w, 3) as .webp, .gif or .mp4, whole or not at all; the last needs imageio-ffmpeg."""
    kind = path.suffix.lower().removeprefix(".")
    if kind == "mp4":
        import imageio_ffmpeg

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            h, w = frames[0].shape[:2]
            film = Path(folder) / path.name
            writing = imageio_ffmpeg.write_frames(str(film), (w, h), fps=1000 / FRAME_MS, macro_block_size=2, quality=8)
            writing.send(None)
            for frame in frames:
                writing.send(np.ascontiguousarray(frame))
            writing.close()
            film.replace(path)
        return
    from PIL import Image

    first, *rest = [Image.fromarray(f) for f in frames]
    how: dict[str, Any] = {"quality": 80} if kind == "webp" else {}
    with whole(path) as file:
        first.save(file, format=kind, save_all=True, append_images=rest, duration=FRAME_MS, loop=0, **how)
