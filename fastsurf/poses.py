"""From bare photographs, or a video, to a scene with cameras: COLMAP in a process of its own (sfm.py), watched from here.

A scene folder holds images/ (hard links where that is possible), masks/ and ignore/ where there were any, database.db (COLMAP's features
and matches), poses.json (what was asked for, and what came of it), colmap.log, and, at the very end, sparse/0: only then is it a scene. Its
frame is COLMAP's own, of arbitrary scale, turned so that the cameras' mean up direction is +z.

Where photographs have masks, features are looked for inside them alone: what is outside may stand still while the thing turns. What is
marked as to be ignored, passers-by for instance, gives none either.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .cameras import Camera, View, load_pycolmap
from .child import ChildError, python_at_work
from .config import Config, PosesConfig, check
from .errors import BackendError, SceneError, UsageError
from .files import write_whole
from .footage import Footage, find_footage, gather, names_in
from .formats import sniff
from .formats.checks import find_ignored, find_masks, ignore_folder, image_size, mask_folder
from .guard import read_json
from .hooks import Hook, MeshProgress, Note, Phases, Saved, announce

RECORD, MODEL, PART = "poses.json", "sparse", ".sparse.part"
MADE = ("images", "masks", "ignore", "database.db", "database.db-shm", "database.db-wal", "pairs.txt", "colmap.log", MODEL, PART, RECORD)
LEAST_PYCOLMAP = (4, 2)
STAGES = ("features", "matching", "mapping")
FEW_FEATURES = 300  # of a photograph: blurred, or of plain surfaces
MOST_MORE = 4.0  # times the features that are asked for, of which those outside masks are dropped
GLANCE = 256  # pixels a side at which masks are judged


@dataclass(frozen=True)
class Poses:
    """What was found out about a set of photographs.

    Attributes:
        placed, left_out: photographs with and without a pose.
        sizes: photographs in each model that was found, the largest first; that one was kept.
        error: mean reprojection error, pixels of the photographs.
        track: photographs that a point is seen in, on average.
        features: of a photograph, the median; pairs: of photographs that show the same thing.
        cameras: model, width, height and params of each.
        seconds: by phase, of this call.
    """

    scene: Path
    placed: tuple[str, ...]
    left_out: tuple[str, ...]
    sizes: tuple[int, ...]
    points: int
    error: float
    track: float
    features: int
    pairs: int
    cameras: tuple[dict[str, Any], ...]
    seconds: dict[str, float]


def find_poses(
    source: str | Path, out: str | Path, config: PosesConfig | None = None, *, seed: int = 0, threads: int = 0, force: bool = False,
    invert_masks: bool = False, ignored: str = "auto", hooks: Sequence[Hook] = (),
) -> Poses:  # fmt: skip
    """Make a COLMAP scene of photographs or a video. Interrupted, the same call goes on where it was; once finished, it returns at once.

    Args:
        source: folder of photographs, or a video.
        out: folder of the scene.
        threads: 0 takes all.
        force: replace what an earlier call with another source or other options left in `out`.
        invert_masks: what is dark in masks is the object.
        ignored: where pictures are that show in white what to ignore: auto (ignore/NAME.png beside the photographs), none or a folder.

    Raises:
        UsageError: `out` holds something else. ConfigError: see config.check.
        SceneError: no photographs, unreadable ones or masks, or too few that fit together.
        BackendError: no pycolmap, or COLMAP failed.
    """
    config, source, out, events = config or PosesConfig(), Path(source), Path(out), announce(hooks)
    check(Config(poses=config))
    footage = find_footage(source)
    if footage is None:
        raise SceneError(f"no photographs in {source}: want a folder of them (jpg, png, tif, webp, heic) or a video (mp4, mov)")
    if 0 < len(footage.names) < 3:
        raise SceneError(f"{source}: found {len(footage.names)} photographs; cameras can be found for three or more, of one thing")
    if config.masks not in ("auto", "ignore"):
        footage = dataclasses.replace(footage, masks=mask_folder(source, config.masks))
    if ignored != "auto":
        footage = dataclasses.replace(footage, ignored=None if ignored == "none" else ignore_folder(source, ignored))
    asked = _asked(footage, config, seed, invert_masks)
    record = _claim(out, asked, force)
    if (out / MODEL).is_dir():
        return _poses(out, record["found"], {})
    _want_pycolmap()
    phases = Phases(events)
    with phases("read") as phase:
        gather(footage, out, config.frames, lambda done, what: events(MeshProgress(done, what)))
        names = names_in(out / "images")
        phase.detail = f"{len(names)} {'frames of a video' if footage.is_video else 'photographs'}"
        shutil.rmtree(out / PART, ignore_errors=True)
        (out / PART).mkdir()
        where = config.masks if config.masks in ("auto", "ignore") else str(out / "masks")
        share, masked = _write_masks(out, names, where, invert_masks, events)
    if masked:
        events(Note("features are looked for inside the masks alone (--masks ignore: everywhere, if the surroundings stood still too)"))
    found = _place(out, asked, share, threads or os.cpu_count() or 1, phases)
    found["left_out"] = sorted(set(names) - set(found["placed"]))
    _judge(found, len(names), config, out, masked)
    for note in _notes(found, len(names)):
        events(Note(note))
    for folder in (".models", ".masks"):
        shutil.rmtree(out / PART / folder, ignore_errors=True)
    _write_record(out, asked | {"found": found})
    os.replace(out / PART, out / MODEL)
    events(Saved("scene", out))
    return _poses(out, found, phases.seconds)


def _write_masks(out: Path, names: Sequence[str], where: str, invert: bool, events: Hook) -> tuple[float | None, bool]:
    """Where COLMAP is to look for features, as it wants it: out/PART/.masks/NAME.png of each photograph's size, else 0.

    Args:
        where: auto, ignore or a folder of masks.
        invert: what is dark in them is the object.

    Returns:
        the share of the photographs where features are looked for, None: all; and whether there are masks of an object.

    Raises:
        SceneError: unreadable masks, such as can't be of one object, or all to be ignored.
    """
    from PIL import Image

    folder = out / "images"
    sizes = [image_size(folder / name) for name in names]
    views = [
        View(name, folder / name, None, Camera("PINHOLE", w, h, (1.0, 1.0, w / 2, h / 2)), np.eye(3, 4))
        for name, (w, h) in zip(names, sizes, strict=True)
    ]
    views, alpha, _ = find_masks(out, views, where, in_order=False)
    views, masked = find_ignored(out, views, "auto"), alpha or views[0].mask is not None
    saying = sum(view.ignore is not None for view in views)
    if not masked and not saying:
        return None, False
    from .images import read_coverage, read_ignored  # with torch, which takes a second to load
    from .scene import check_masks

    small, shares = [], []
    for done, view in enumerate(views):
        events(MeshProgress(done / len(views), f"mask of {view.name}"))
        w, h = view.camera.width, view.camera.height
        inside = (read_coverage(view) > 127) != invert if masked else np.ones((h, w), bool)
        step = max(1, max(h, w) // GLANCE)
        small.append(np.where(inside[::step, ::step], 255, 0).astype(np.uint8))
        if view.ignore is not None:
            inside = inside & ~read_ignored(view.ignore, view)
        shares.append(inside[::step, ::step].mean())
        file = out / PART / ".masks" / f"{view.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(file, compress_level=1)
    if masked:
        check_masks(small, names, "an image editor (reconstruct: --set scene.invert_masks=true)")
    if not any(shares):
        raise SceneError(f"{out / 'ignore'}: nothing is left of the photographs: white is to be ignored, black is kept")
    if saying:
        events(Note(f"{saying} of {len(views)} photographs say what to ignore: no features are looked for there"))
    return float(np.mean(shares)), masked


def _place(out: Path, asked: dict[str, Any], share: float | None, threads: int, phases: Phases) -> dict[str, Any]:
    """Run COLMAP; the model is left in out/PART/0, and what it said about it returned.

    Args:
        share: of the photographs, where features are looked for; None: all.
    """
    job = {"scene": str(out.resolve()), "model": str(out.resolve() / PART / "0"), "threads": threads}
    phases.events(Saved("database", out / "database.db"))
    job |= {key: asked[key] for key in ("pairs", "cameras", "max_side", "features", "seed")}
    job["masks"] = None if share is None else str(out.resolve() / PART / ".masks")
    if share is not None:  # COLMAP takes the largest of a photograph, and then drops those outside
        job["features"] = round(asked["features"] * min(1.0 / share, MOST_MORE))
    child = python_at_work(["-P", "-m", "fastsurf.sfm"], json.dumps(job), out / "colmap.log", "COLMAP", OMP_NUM_THREADS="1")
    try:
        with child as lines:  # COLMAP has its own threads; OpenMP's inside them made matches differ from run to run
            answers = map(json.loads, lines)
            for stage in STAGES:
                with phases(stage) as phase:
                    phase.detail = _follow(answers, stage, phases.events)
            return dict(next(answers)["model"])
    except ChildError as e:
        raise BackendError(f"{e}; the same command goes on where it was") from None


def is_bare(path: Path) -> bool:
    """Whether `path` holds photographs or a video, and no cameras: nor does a folder in it, which would be what was meant."""
    if path.is_dir() and (sniff(path) or any(sniff(folder) for folder in path.iterdir() if folder.is_dir())):
        return False
    return find_footage(path) is not None


def _asked(footage: Footage, config: PosesConfig, seed: int, invert_masks: bool) -> dict[str, Any]:
    """What a scene is made of and how: where two agree in this, their scenes do."""
    stats = [(name, (footage.root / name).stat()) for name in footage.names or ("",)]
    for kind, folder in (("mask", footage.masks), ("ignore", footage.ignored)):
        if folder is not None:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            stats += [(f"{kind} {file.relative_to(folder).as_posix()}", file.stat()) for file in files]
    options = dataclasses.asdict(config)
    del options["least"]  # judges the outcome
    options |= {"masks": config.masks != "ignore", "invert_masks": invert_masks}
    if footage.is_video and config.pairs == "auto":
        options["pairs"] = "sequence"
    if footage.is_video and config.cameras == "auto":
        options["cameras"] = "one"
    return {
        "source": str(footage.root.resolve()), "mask_folder": None if footage.masks is None else str(footage.masks.resolve()), **options,
        "seed": seed, "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }  # fmt: skip


def _claim(out: Path, asked: dict[str, Any], force: bool) -> dict[str, Any]:
    """The record in `out`, which is made ready for the work.

    Raises:
        UsageError: something else is there.
    """
    record: Any = None
    if (out / RECORD).is_file():
        try:
            record = read_json(out / RECORD)
        except SceneError:
            record = {}
        if not isinstance(record, dict):
            record = {}
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: want a folder for the scene")
    if record is None and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} holds other files: want a new or empty folder for the scene")
    if record is not None and {key: record.get(key) for key in asked} == asked:
        return dict(record)
    if record is not None:
        if not force:
            raise UsageError(f"{out} holds a scene of other photographs or options: --force replaces it, -o DIR takes another folder")
        for name in MADE:
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _write_record(out, asked)
    return asked


def _write_record(out: Path, record: dict[str, Any]) -> None:
    write_whole(out / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def _want_pycolmap() -> None:
    if load_pycolmap() is None:
        raise BackendError("finding cameras needs pycolmap, which is not installed: pip install pycolmap")
    version = metadata.version("pycolmap")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < LEAST_PYCOLMAP:
        raise BackendError(f"finding cameras needs pycolmap 4.2 or newer, found {version}: pip install --upgrade pycolmap")


def _follow(answers: Iterator[dict[str, Any]], stage: str, events: Hook) -> str:
    """Pass progress on until a stage has ended; what came of it in words."""
    for answer in answers:
        if "error" in answer:
            raise BackendError(f"COLMAP failed in {stage}: {answer['error']}")
        if "finished" in answer:
            assert answer["finished"] == stage, (answer, stage)
            return str(answer["detail"])
        events(MeshProgress(answer["done"] / max(answer["of"], 1), f"{stage} {answer['done']:,} of {answer['of']:,}"))
    raise AssertionError(stage)


def _judge(found: dict[str, Any], n: int, config: PosesConfig, out: Path, masked: bool) -> None:
    """Refuse a model that leaves most photographs out.

    Args:
        masked: features were looked for inside masks alone.

    Raises:
        SceneError: with the likely reason.
    """
    placed = len(found["placed"])
    if placed >= max(3, config.least * n):
        return
    several = f" in the largest of {len(found['sizes'])} models" if len(found["sizes"]) > 1 else ""
    how = f"{out}: {placed} of {n} photographs found their place{several}, want {config.least:.0%}"
    if found["features"] < FEW_FEATURES:
        inside = " inside its mask" if masked else ""
        why = f"a photograph shows only {found['features']} features{inside}: blurred, dark, or of plain surfaces"
    elif found["pairs"] < n - 1:
        why = f"only {found['pairs']} pairs of photographs fit together: take more, a small step apart, each sharing most of the one before"
    elif several:
        why = "parts of the photographs share too little with the others: take some in between"
    else:
        why = "the camera hardly moved between them, or what they show did: walk round a thing that stands still"
        why += "" if masked else ", or give masks of one that turns"
    if masked:
        why += "; --masks ignore (reconstruct: --set poses.masks=ignore) takes features of the surroundings too, if they stood still"
    least = 100 * max(placed - 1, 0) // n / 100
    accept = f"; --least {least:g} (reconstruct: --set poses.least={least:g}) takes what there is" if placed >= 3 else ""
    raise SceneError(f"{how}. {why[0].upper()}{why[1:]}{accept}")


def _notes(found: dict[str, Any], n: int) -> list[str]:
    notes = []
    if found["left_out"]:
        names, more = ", ".join(found["left_out"][:5]), len(found["left_out"]) - 5
        rest = f" and {more} more" if more > 0 else ""
        notes.append(f"{len(found['placed'])} of {n} photographs found their place; not {names}{rest}")
    if found["doubted"]:
        notes.append(f"{found['doubted']} of {found['pairs']} pairs of photographs look alike and show different things: left out")
    if len(found["sizes"]) > 1:
        first, *others = found["sizes"]
        rest = " and ".join(str(size) for size in others)
        notes.append(f"the photographs fall into models that do not connect: took the one of {first}, not of {rest}")
    if found["turn"] is None:
        notes.append("the cameras have no common up direction: the scene stays as COLMAP left it")
    return notes


def _poses(out: Path, found: dict[str, Any], seconds: dict[str, float]) -> Poses:
    return Poses(
        out, tuple(found["placed"]), tuple(found["left_out"]), tuple(found["sizes"]), found["points"], found["error"], found["track"],
        found["features"], found["pairs"], tuple(found["cameras"]), dict(seconds),
    )  # fmt: skip
