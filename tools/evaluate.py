#!/usr/bin/env python3
"""How good reconstructions are: scenes x variants x budgets x seeds, each scored, in one table.

    python tools/evaluate.py SCENE... [--presets default,quick,FILE.toml] [--variant NAME=section.key=value,...]
                             [--seeds 0,1,2] [--minutes M | --steps N | --at 15,30,60] [--gt PATH] -o DIR

A cell is one reconstruction, made by the command line in a process of its own. Seeds are the outermost loop, so that other load on the
machine hits all variants alike. DIR/results.md, results.json and SCENE.png are written anew after every cell, from all cells in DIR:
several commands can fill one table. A finished cell is not made again unless its settings change; where only the scoring changes, it is
scored again. DIR/cells/NAME keeps the log, the run folder, scores, rendered views and pictures of a cell. Without any SCENE the tables
are written from what is there.

Where a scene has a truth (--gt, or gt/ in its folder) the mesh is scored against it, those parts of it that a training view sees;
held-out views (its own, else every 8th) give PSNR and SSIM, and the IoU of the mesh's silhouettes with their masks.

Exit code: 0, 1 where a cell failed, 2 for a request that makes no sense, 130 stopped.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fastsurf
from fastsurf.cameras import View, rescale
from fastsurf.config import Config, from_dict, load_config, to_dict, to_toml
from fastsurf.dtu import read_observation, scan_number, score_dtu
from fastsurf.errors import FastsurfError, UsageError
from fastsurf.figures import color_bar, contact_sheet, draw_error
from fastsurf.files import write_whole
from fastsurf.info import pixel_footprint
from fastsurf.mesh import Mesh, components, is_watertight
from fastsurf.meshio import read_mesh
from fastsurf.metrics import Truth, distance_to, psnr, read_truth, score_mesh, ssim
from fastsurf.pictures import png
from fastsurf.reconstruction import background_kind
from fastsurf.runs import picture_names, render_run
from fastsurf.scene import Scene, load_scene
from fastsurf.shade import Picture, draw, rasterise
from fastsurf.training import DEFAULT_RAYS
from fastsurf.ui.jsonlines import finite

PACKAGE = Path(fastsurf.__file__).parent
SIDE = 360  # pixels of the longer side of a picture in a sheet
HEAT_SHARE = 0.005  # of the truth's diagonal: where the colours of errors end
COLUMNS = [  # heading, key, format
    ("Chamfer %", "chamfer_pct", ".4f"), ("px", "chamfer_px", ".3f"), ("F@0.5 %", "f_score_05", ".4f"), ("F@1 %", "f_score", ".4f"),
    ("normals °", "normal_error_deg", ".2f"), ("offset px", "offset_px", "+.3f"), ("DTU acc.", "dtu_accuracy", ".3f"),
    ("DTU compl.", "dtu_completeness", ".3f"), ("DTU overall", "dtu_overall", ".3f"), ("PSNR", "psnr", ".2f"),
    ("PSNR object", "psnr_object", ".2f"), ("SSIM", "ssim", ".4f"), ("mask IoU", "mask_iou", ".4f"), ("parts", "components", ".0f"),
    ("watertight", "watertight", ""), ("faces", "faces", ".0f"), ("read s", "read_seconds", ".1f"), ("train s", "train_seconds", ".1f"),
    ("mesh s", "mesh_seconds", ".1f"), ("wall s", "wall_seconds", ".1f"), ("CPU s", "cpu_seconds", ".1f"), ("MB", "peak_mb", ".0f"),
    ("steps", "steps", ".0f"), ("M samples", "samples_millions", ".2f"),
]  # fmt: skip

Tree = dict[str, Any]  # as JSON has it


@dataclass(frozen=True)
class Cell:
    """One reconstruction to make and score."""

    scene: Path
    variant: str
    budget: str
    config: Config
    scoring: Tree  # gt, dtu, score_mesh, score_images, samples, pictures

    @property
    def label(self) -> tuple[str, str, str, int]:
        """Scene, variant, budget and seed, as they stand in the table."""
        return (scene_name(self.scene), self.variant, self.budget, self.config.train.seed)

    @property
    def name(self) -> str:
        """Of its folder: readable, and another one for other settings."""
        identity = json.dumps([str(self.scene.resolve()), to_dict(self.config)], sort_keys=True)
        scene, variant, budget, seed = self.label
        readable = re.sub(r"[^\w.+-]+", "_", f"{scene}-{variant}-{budget}-seed{seed}")
        return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    def tree(self) -> Tree:
        """What the process that scores it has to know."""
        scene, variant, budget, seed = self.label
        head = {"scene": scene, "variant": variant, "budget": budget, "seed": seed, "path": str(self.scene)}
        return {**head, "config": to_dict(self.config), "scoring": self.scoring}


class CellError(Exception):
    """A cell could not be made or scored, and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    args = parser().parse_intermixed_args(argv)
    try:
        if args.score_cell:
            score(args.score_cell)
            return 0
        return evaluate(args)
    except FastsurfError as e:
        print(f"evaluate: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("evaluate: stopped; the same command goes on with the cell that was not finished", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scenes", nargs="*", type=Path, metavar="SCENE")
    p.add_argument("-o", "--out", type=Path, metavar="DIR")
    p.add_argument("--presets", default="default", help="comma-separated: default, a preset's name, FILE.toml")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="in every cell (repeatable)")
    p.add_argument("--variant", action="append", default=[], metavar="NAME=SECTION.KEY=VALUE,...", help="NAME=: no change (repeatable)")
    p.add_argument("--seeds", default="0", help="comma-separated")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--at", metavar="S,...", help="several budgets in seconds, a run each, since schedules depend on the budget")
    p.add_argument("--holdout", type=int, default=8, help="every n-th view of scenes that hold out none themselves; 0: none")
    p.add_argument("--gt", action="append", default=[], metavar="[SCENE=]PATH", help="truth: a mesh, points or a folder; else SCENE/gt")
    p.add_argument("--dtu", type=Path, metavar="DIR", help="score by DTU's protocol: DIR holds ObsMask/ and Points/stl/")
    p.add_argument("--score-mesh", metavar="CMD", help="also ask another program: CMD MESH SCENE --json FILE")
    p.add_argument("--score-images", metavar="CMD", help="also ask another program: CMD RENDERED_VIEWS SCENE --json FILE")
    p.add_argument("--samples", type=int, default=200_000, help="points on each surface")
    p.add_argument("--no-pictures", action="store_true")
    p.add_argument("--keep-checkpoints", action="store_true", help="else they go once a cell is scored")
    p.add_argument("--fresh", action="store_true", help="make finished cells again that other sources of the package made")
    p.add_argument("--score-cell", type=Path, help=argparse.SUPPRESS)  # how the tool calls itself, so that a crash is one cell's
    return p


def evaluate(args: argparse.Namespace) -> int:
    """Make what is missing, telling of each cell in a line, and write the tables.

    Raises:
        UsageError: a request that makes no sense.
    """
    if args.out is None:
        raise UsageError("want -o DIR for the results")
    cells = plan(args)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for done, cell in enumerate(cells, 1):
        folder = args.out / "cells" / cell.name
        start = time.monotonic()
        try:
            news = make(cell, folder, args.fresh, args.keep_checkpoints)
        except CellError as e:
            failed += 1
            write_json(folder / "failed.json", {**cell.tree(), "why": str(e)})
            news = f"FAILED: {e}"
        print(f"[{done}/{len(cells)}] {' · '.join(map(str, cell.label))}: {news} ({time.monotonic() - start:.0f} s)", flush=True)
        report(args.out)
    if not cells:
        report(args.out)
    print(args.out / "results.md")
    return 1 if failed else 0


def plan(args: argparse.Namespace) -> list[Cell]:
    """All cells, in the order in which they are made: seed by seed.

    Raises:
        UsageError: a request that makes no sense. ConfigError: a setting that doesn't exist.
    """
    names = [scene_name(scene) for scene in args.scenes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two scenes are called {', '.join(sorted(twice))}: rename a folder, or take another -o DIR for one of them")
    for scene in args.scenes:
        if not scene.exists():
            raise UsageError(f"no scene {scene}")
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
        budgets = [("preset", None)] if args.at is None else [(f"{float(s):g} s", float(s) / 60) for s in args.at.split(",")]
    except ValueError:
        raise UsageError(f"--seeds and --at want numbers with commas between them, found {args.seeds!r}, {args.at!r}") from None
    if args.minutes is not None:
        budgets = [(f"{args.minutes:g} min", args.minutes)]
    if args.steps is not None:
        budgets = [(f"{args.steps} steps", None)]
    truths = named_truths(args.gt, names)
    cells = []
    for seed in seeds:
        for budget, minutes in budgets:
            for scene in args.scenes:
                for variant, config in variants(args.presets, args.variant, args.set):
                    train = replace(config.train, seed=seed)
                    if budget != "preset":
                        train = replace(train, minutes=minutes, steps=args.steps)
                    photographs = replace(config.scene, holdout=config.scene.holdout or args.holdout)
                    gt = truths.get(scene_name(scene))
                    scoring = {
                        "gt": str(gt.resolve()) if gt else None, "dtu": str(args.dtu.resolve()) if args.dtu else None,
                        "score_mesh": args.score_mesh, "score_images": args.score_images, "samples": args.samples,
                        "pictures": not args.no_pictures,
                    }  # fmt: skip
                    cells.append(Cell(scene.resolve(), variant, budget, replace(config, train=train, scene=photographs), scoring))
    return cells


def scene_name(scene: Path) -> str:
    """Its folder's."""
    path = scene.resolve()
    return (path.parent if path.is_file() else path).name


def named_truths(given: Sequence[str], scenes: Sequence[str]) -> dict[str, Path]:
    """By scene."""
    truths = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            if len(scenes) != 1:
                raise UsageError(f"--gt {text}: with {len(scenes)} scenes say whose it is: --gt SCENE={text}")
            name, path = scenes[0], text
        if name not in scenes:
            raise UsageError(f"--gt {text}: no scene {name!r} among {', '.join(scenes)}")
        if not Path(path).exists():
            raise UsageError(f"--gt {text}: no {path}")
        truths[name] = Path(path)
    return truths


def variants(presets: str, changes: Sequence[str], sets: Sequence[str]) -> list[tuple[str, Config]]:
    """Every preset with every set of changes, by name."""
    made: dict[str, Config] = {}
    for preset in presets.split(","):
        base = None if preset == "default" else preset
        for change in changes or [""]:
            name, equals, settings = change.partition("=")
            if changes and not (equals and name):
                raise UsageError(f"--variant wants NAME=section.key=value,...; found {change!r}")
            each = re.split(r",(?=[a-z_]+(?:\.\w+)?=)", settings) if settings else []  # values may hold commas too
            stem = Path(preset).stem
            label = stem if not changes else name if preset == "default" else f"{stem}+{name}"
            if label in made:
                raise UsageError(f"two variants are called {label}")
            made[label] = load_config(base, [*sets, *each])
    return list(made.items())


def make(cell: Cell, folder: Path, fresh: bool, keep_checkpoint: bool) -> str:
    """Reconstruct and score what is not there yet, and say in a few words what came of it.

    Raises:
        CellError: one of them failed.
    """
    made, scored = read_json(folder / "made.json"), read_json(folder / "scores.json")
    if made and fresh and made["sources"] != sources():
        made = None
    if made and scored and scored["scoring"] == cell.scoring:
        return "kept"
    (folder / "failed.json").unlink(missing_ok=True)
    if not made:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "cell.json", cell.tree())
    if not made:
        write_whole(folder / "config.toml", to_toml(cell.config).encode())
        load = os.getloadavg()[0]
        words = ["-m", "fastsurf", "reconstruct", str(cell.scene), "--config", str(folder / "config.toml"), "--run", str(folder / "run")]
        usage = child(words, folder / "log.txt", "the reconstruction")
        made = {**usage, "load_before": load, "sources": sources(), "commit": commit(), "finished": time.time()}
        write_json(folder / "made.json", made)
    (folder / "scores.json").unlink(missing_ok=True)
    child([str(Path(__file__).resolve()), "--score-cell", str(folder)], folder / "scoring.txt", "the scoring")
    if not keep_checkpoint:
        (folder / "run" / "checkpoint.safetensors").unlink(missing_ok=True)
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    return in_brief(scores)


def in_brief(scores: Tree) -> str:
    """The first things to know of a cell, in a line."""
    facts = [("Chamfer {} %", "chamfer_pct", ".4f"), ("F@0.5 % {}", "f_score_05", ".3f"), ("normals {}°", "normal_error_deg", ".1f"),
             ("PSNR {}", "psnr", ".2f"), ("made in {} s", "wall_seconds", ".0f")]  # fmt: skip
    return ", ".join(words.format(format(scores[key], form)) for words, key, form in facts if scores.get(key) is not None)


def child(words: Sequence[str], log: Path, what: str) -> dict[str, float]:
    """Run Python in a process of its own, everything that it says in a file; its seconds and peak memory.

    Raises:
        CellError: it failed: the last line that it said.
    """
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    start = time.monotonic()
    with log.open("wb") as file:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        ended = f"exit code {process.returncode}" if process.returncode > 0 else signal.Signals(-process.returncode).name
        raise CellError(f"{what} ended with {ended}: {said[-1].strip() if said else 'it said nothing'} (all of it: {log})")
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"wall_seconds": time.monotonic() - start, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": peak}


@functools.cache
def sources() -> str:
    """What the package consists of, as a short hash: equal for equal code."""
    found = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".cpp", ".h", ".toml") and "__pycache__" not in p.parts)
    return hashlib.sha256(b"".join(p.relative_to(PACKAGE).as_posix().encode() + p.read_bytes() for p in found)).hexdigest()[:12]


@functools.cache
def commit() -> str:
    """The checkout's, with a + where files differ from it; nothing outside of one."""
    git = functools.partial(subprocess.run, cwd=PACKAGE.parent, capture_output=True, text=True)
    try:
        head = git(["git", "rev-parse", "--short", "HEAD"])
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"])
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""


# ---- scoring


def score(folder: Path) -> None:
    """Score the finished run in a cell's folder, in this process: scores.json, rendered views and pictures."""
    cell = read_json(folder / "cell.json")
    assert cell is not None, folder
    path, config, scoring = Path(cell["path"]), from_dict(cell["config"], str(folder / "cell.json")), cell["scoring"]
    scene, mesh = load_scene(path, config.scene), read_mesh(folder / "run" / "mesh.ply")
    made = read_json(folder / "made.json") or {}
    scores: Tree = {key: made[key] for key in ("wall_seconds", "cpu_seconds", "peak_mb")}
    scores |= from_log(folder / "run" / "log.jsonl", config)
    scores |= {"components": int(components(mesh.vertices, mesh.faces).max()) + 1, "watertight": is_watertight(mesh.faces)}
    scores |= {"faces": len(mesh.faces), "footprint": pixel_footprint(scene)}

    home = path if path.is_dir() else path.parent
    truth_path = Path(scoring["gt"]) if scoring["gt"] else home if (home / "gt").is_dir() else None
    truth = read_truth(truth_path) if truth_path else None
    if truth is not None:
        scores |= against(mesh, truth, scene, scoring["samples"])
    if scoring["dtu"]:
        scores |= {f"dtu_{k}": v for k, v in score_dtu(mesh, read_observation(Path(scoring["dtu"]), scan_number(home))).items()}
    views = rendered(folder, scene, config)
    if views:
        per_view = {scene.capture.views[i].name: on_view(views[i], scene, i, config) for i in views}
        scores |= means(per_view.values())
    else:
        per_view = {}
    scores |= silhouettes(mesh, scene)
    external = {}
    if scoring["score_mesh"] and truth is not None:
        external["mesh"] = ask(scoring["score_mesh"], [folder / "run" / "mesh.ply", home], folder / "score_mesh.json")
    if scoring["score_images"] and any(scene.capture.views[i].split == "test" for i in scene.test):
        external["images"] = ask(scoring["score_images"], [folder / "views", home], folder / "score_images.json")
    if scoring["pictures"]:
        draw_cell(folder / "pictures", mesh, truth, scene, views)
    write_json(folder / "scores.json", {"scoring": scoring, "scores": scores, "views": per_view, "external": external})


def from_log(log: Path, config: Config) -> Tree:
    """Seconds by phase, steps, and samples: rays x samples on a ray x steps."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    facts: Tree = {f"{e['name']}_seconds": e["seconds"] for e in events if e["event"] == "phase_done"}
    facts["steps"] = max((e["step"] for e in events if e["event"] == "step"), default=0)
    rays = config.train.rays or DEFAULT_RAYS["cuda" if config.backend in ("cuda", "triton") else "cpu"]
    facts["samples_millions"] = rays * (config.sampling.front + config.sampling.interval) * facts["steps"] / 1e6
    return facts


def against(mesh: Mesh, truth: Truth, scene: Scene, samples: int) -> Tree:
    """Scores against the truth; of its lengths some in pixel footprints too."""
    scores: Tree = dict(score_mesh(mesh, truth, [scene.capture.views[i] for i in scene.train], samples))
    footprint = pixel_footprint(scene)
    return scores | {"chamfer_px": scores["chamfer"] / footprint, "offset_px": scores["offset"] / footprint}


def rendered(folder: Path, scene: Scene, config: Config) -> dict[int, Picture]:
    """The held-out views as the model shows them, from DIR/views, where they are made first if they are not there."""
    if not scene.test:
        return {}
    names = dict(zip(scene.test, picture_names([scene.capture.views[i].name for i in scene.test]), strict=True))
    files = {i: folder / "views" / f"{name}.png" for i, name in names.items()}
    if not all(file.is_file() for file in files.values()):
        render_run(folder / "run", "test", folder / "views", config.backend, config.threads)
        shutil.rmtree(folder / "views" / "depth")
    return {i: np.asarray(Image.open(file).convert("RGB")) for i, file in files.items()}


def on_view(picture: Picture, scene: Scene, i: int, config: Config) -> Tree:
    """PSNR and SSIM of a held-out view; behind masks both show the same plain background."""
    photo, shown, mask = scene.images[i].numpy() / 255, picture / 255, None
    if scene.masks is not None:
        mask = scene.masks[i].numpy() / 255
        if (kind := background_kind(scene, config)) != "model":
            photo = photo * mask[..., None] + (0.0 if kind == "black" else 1.0) * (1 - mask[..., None])
    scores = {"psnr": psnr(shown, photo), "ssim": ssim(shown, photo)}
    if mask is not None and (mask > 0.5).any():
        scores["psnr_object"] = psnr(shown, photo, mask > 0.5)
    return scores


def silhouettes(mesh: Mesh, scene: Scene) -> Tree:
    """Mean IoU of the mesh's silhouettes with the masks, in the held-out views or, without any, in the training views."""
    if scene.masks is None:
        return {}
    shares = []
    for i in scene.test or scene.train:
        view, mask = scene.capture.views[i], scene.masks[i].numpy() > 127
        shown = rasterise(mesh, view.camera, view.c2w).face >= 0
        either = int((shown | mask).sum())
        shares.append(int((shown & mask).sum()) / either if either else 1.0)
    return {"mask_iou": statistics.fmean(shares)}


def means(rows: Any) -> Tree:
    """Of every number that the rows hold."""
    rows = list(rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: statistics.fmean(row[key] for row in rows if key in row) for key in keys}


def ask(command: str, arguments: Sequence[Path], answer: Path) -> Tree:
    """What another program says; lists, one entry a view for example, are left in its own file.

    Raises:
        FastsurfError: it failed.
    """
    words = [*shlex.split(command), *map(str, arguments), "--json", str(answer)]
    answer.unlink(missing_ok=True)
    try:
        process = subprocess.run(words, capture_output=True, text=True, errors="replace")
    except OSError as e:
        raise FastsurfError(f"{words[0]} can't be run: {e.strerror}") from None
    if process.returncode or not answer.is_file():
        said = (process.stderr or process.stdout).strip().splitlines()
        raise FastsurfError(f"{shlex.join(words[:2])} ended with exit code {process.returncode}: {said[-1] if said else 'no word'}")
    tree = json.loads(answer.read_text())
    tree = tree.get("mean", tree)
    return {key: value for key, value in tree.items() if isinstance(value, int | float)}


# ---- pictures


def draw_cell(folder: Path, mesh: Mesh, truth: Truth | None, scene: Scene, views: dict[int, Picture]) -> None:
    """Two views, held-out ones where there are any: photograph, rendering, shaded mesh, normals, error, each a PNG."""
    shutil.rmtree(folder, ignore_errors=True)
    distance, limit = (distance_to(truth), heat_limit(truth)) if truth is not None else (None, 0.0)
    order = scene.test or scene.train
    for k, i in enumerate(dict.fromkeys([order[0], order[len(order) // 2]])):
        view = small(scene.capture.views[i])
        camera, c2w, size = view.camera, view.c2w, (view.camera.width, view.camera.height)
        photo = scene.images[i].numpy()
        if scene.masks is not None:
            photo = np.where(scene.masks[i].numpy()[..., None] > 127, photo, 255)
        pictures = {"photograph": resized(photo, size)}
        if i in views:
            pictures["rendering"] = resized(views[i], size)
        pictures |= {"shaded": draw(mesh, camera, c2w), "normals": draw(mesh, camera, c2w, "normal")}
        if distance is not None:
            pictures["error"] = draw_error(mesh, distance, limit, camera, c2w)
        for name, picture in pictures.items():
            write_whole(folder / f"{k}-{name}.png", png(picture))
    if truth is not None:
        write_json(folder / "error.json", {"limit": limit, "footprint": pixel_footprint(scene)})


def heat_limit(truth: Truth) -> float:
    """The distance at which the colours of errors end."""
    points = truth.points if truth.points is not None else truth.mesh.vertices if truth.mesh is not None else np.zeros((1, 3))
    return HEAT_SHARE * float(np.linalg.norm(np.ptp(points, axis=0)))


def small(view: View) -> View:
    """For a picture in a sheet."""
    w, h = view.camera.width, view.camera.height
    scale = min(1.0, SIDE / max(w, h))
    return replace(view, camera=rescale(view.camera, max(1, round(w * scale)), max(1, round(h * scale))))


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))


def draw_sheets(out: Path, cells: Sequence[Tree]) -> list[Path]:
    """DIR/SCENE.png: the pictures of each variant and budget, of its lowest seed, as rows."""
    written = []
    for scene in dict.fromkeys(cell["scene"] for cell in cells):
        rows: dict[tuple[str, str], tuple[str, Path]] = {}
        for cell in cells:
            folder = out / "cells" / cell["folder"] / "pictures"
            if cell["scene"] == scene and folder.is_dir():
                s = cell["scores"]
                title = f"{scene} / {cell['variant']} / {cell['budget']} / seed {cell['seed']}:   {in_brief(s)}"
                rows.setdefault((cell["variant"], cell["budget"]), (title, folder))
        if not rows:
            continue
        known = {file.stem for _, folder in rows.values() for file in folder.glob("*.png")}
        order = ["photograph", "rendering", "shaded", "normals", "error"]
        columns = [name for k in (0, 1) for kind in order if (name := f"{k}-{kind}") in known]
        table = [(title, [load_picture(folder / f"{name}.png") for name in columns]) for title, folder in rows.values()]
        scale = next((tree for _, folder in rows.values() if (tree := read_json(folder / "error.json"))), None)
        foot = None
        if scale is not None:
            share, pixels = f"{100 * HEAT_SHARE:g} % of the truth's diagonal", f"{scale['limit'] / scale['footprint']:.2g} pixel footprints"
            note = f"({share}, {pixels})   grey: no truth"
            foot = functools.partial(color_bar, limit=scale["limit"], note=note)
        written.append(out / f"{scene}.png")
        write_whole(written[-1], png(contact_sheet([name.partition("-")[2] for name in columns], table, foot)))
    return written


def load_picture(path: Path) -> Picture:
    """Grey where a variant lacks one."""
    return np.asarray(Image.open(path).convert("RGB")) if path.is_file() else np.full((8, 8, 3), 205, np.uint8)


# ---- tables


def report(out: Path) -> None:
    """results.json, results.md and the sheets, of all cells in the folder; where settings changed, of the latest."""
    cells = gather(out)
    finished = [cell for cell in cells if "scores" in cell]
    sheets = draw_sheets(out, finished)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    machine["fastsurf"] = fastsurf.__version__
    write_json(out / "results.json", {**machine, "cells": cells, "summary": summary(finished)})
    write_whole(out / "results.md", markdown(cells, sheets, machine).encode())


def gather(out: Path) -> list[Tree]:
    """Every cell with its scores or the reason why there are none, in the table's order."""
    latest: dict[tuple[Any, ...], tuple[float, Tree]] = {}
    for folder in sorted((out / "cells").glob("*/")):
        cell, failed = read_json(folder / "cell.json"), read_json(folder / "failed.json")
        scored, made = read_json(folder / "scores.json"), read_json(folder / "made.json")
        if cell is None or (failed is None and (scored is None or made is None)):
            continue  # stopped half-way
        row = {key: cell[key] for key in ("scene", "variant", "budget", "seed", "config")} | {"folder": folder.name}
        if failed is not None:
            row["failed"], when = failed["why"], (folder / "failed.json").stat().st_mtime
        else:
            assert scored is not None and made is not None
            row |= {key: scored[key] for key in ("scores", "views", "external")}
            row |= {key: made[key] for key in ("commit", "sources", "load_before")}
            when = made["finished"]
        label = tuple(cell[key] for key in ("scene", "variant", "budget", "seed"))
        if label not in latest or when > latest[label][0]:
            latest[label] = (when, row)
    first: dict[tuple[str, str, str], int] = {}
    for _, row in sorted(latest.values(), key=lambda entry: entry[0]):
        first.setdefault((row["scene"], row["variant"], row["budget"]), len(first))
    return sorted((row for _, row in latest.values()), key=lambda r: (r["scene"], first[r["scene"], r["variant"], r["budget"]], r["seed"]))


def summary(cells: Sequence[Tree]) -> list[Tree]:
    """Median and spread (greatest less least) over seeds, of every number."""
    groups: dict[tuple[str, str, str], list[Tree]] = {}
    for cell in cells:
        groups.setdefault((cell["scene"], cell["variant"], cell["budget"]), []).append(cell)
    rows = []
    for (scene, variant, budget), members in groups.items():
        keys = dict.fromkeys(key for m in members for key, value in m["scores"].items() if isinstance(value, int | float))
        values = {key: [v for m in members if (v := m["scores"].get(key)) is not None] for key in keys}
        median = {key: float(statistics.median(v)) for key, v in values.items() if v}
        spread = {key: float(max(v) - min(v)) for key, v in values.items() if v}
        head = {"scene": scene, "variant": variant, "budget": budget, "seeds": [m["seed"] for m in members]}
        rows.append({**head, "median": median, "spread": spread})
    return rows


def markdown(cells: Sequence[Tree], sheets: Sequence[Path], machine: Tree) -> str:
    """The tables: medians over seeds, cells, what other programs said, and the pictures."""
    finished = [cell for cell in cells if "scores" in cell]
    groups = summary(finished)
    known = {key for cell in finished for key, value in cell["scores"].items() if value is not None}
    used = [column for column in COLUMNS if column[1] in known]
    headings, heads = [heading for heading, _, _ in used], ["scene", "variant", "budget", "seed"]
    made_with = f"fastsurf {machine['fastsurf']}, Python {machine['python']}, {machine['cores']} cores ({machine['machine']})."
    lines = ["# Results", "", made_with]
    versions = dict.fromkeys((cell["sources"], cell["commit"]) for cell in finished)
    sources_column = ["sources"] if len(versions) > 1 else []
    if sources_column:
        told = "; ".join(f"{hashed} ({commit or 'no commit'})" for hashed, commit in versions)
        lines += ["", f"**Made by different sources of the package**, see the column: {told}."]
    if any(len(group["seeds"]) > 1 for group in groups):
        rows = [
            [*(group[h] for h in heads[:3]), str(len(group["seeds"])), *(spread_text(group, key, form) for _, key, form in used)]
            for group in groups
        ]
        lines += ["", "## Medians over seeds (± half of greatest less least)", "", *table([*heads[:3], "seeds", *headings], rows)]
    rows = []
    for cell in cells:
        row = [str(cell[h]) for h in heads]
        if "failed" in cell:
            row.append("**failed**: " + cell["failed"].replace("|", "\\|"))
        else:
            row += [text(cell["scores"].get(key), form) for _, key, form in used] + [cell[name] for name in sources_column]
        rows.append(row)
    lines += ["", "## Cells", "", *table([*heads, *(headings or ["outcome"]), *sources_column], rows)]
    for kind in ("mesh", "images"):
        asked = [cell for cell in finished if kind in cell["external"]]
        keys = list(dict.fromkeys(key for cell in asked for key in cell["external"][kind]))
        rows = [[*(str(cell[h]) for h in heads), *(text(cell["external"][kind].get(key), ".5g") for key in keys)] for cell in asked]
        if rows:
            lines += ["", f"## What the other program says of the {kind}", "", *table([*heads, *keys], rows)]
    if sheets:
        lines += ["", "## Pictures", *(f"\n![{sheet.stem}]({sheet.name})" for sheet in sheets)]
    lines.append(LEGEND)
    return "\n".join(lines) + "\n"


LEGEND = """
## What the columns mean

Chamfer: mean of both directions' mean distances, in percent of the diagonal of the truth's box, and in pixels as large as one is at the
middle of the scene. F: harmonic mean of the shares of either surface within 0.5 or 1 % of the diagonal of the other. Normals: mean
angle. Offset: median distance of the surface from the truth along its normals, in pixels; positive is too large. Of the mesh those parts
count that a training view sees. PSNR, SSIM: held-out views; "object" inside masks alone. Mask IoU: the mesh's silhouettes against the
masks of the held-out views. Parts: connected components. Wall: from the command to the file. M samples: rays x samples on a ray x steps,
in millions."""


def spread_text(row: Tree, key: str, form: str) -> str:
    """Median ± half the spread."""
    if key not in row["median"]:
        return "–"
    if key == "watertight":
        return f"{row['median'][key]:.0%}" if row["spread"][key] else text(bool(row["median"][key]), "")
    return f"{row['median'][key]:{form}}" + (f" ± {row['spread'][key] / 2:{form.lstrip('+')}}" if len(row["seeds"]) > 1 else "")


def text(value: Any, form: str) -> str:
    """A number, yes or no, or a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else f"{value:{form}}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; short rows are filled up."""
    full = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *full]]


def read_json(path: Path) -> Tree | None:
    """None where there is none. Files are written whole, so what is there can be read."""
    tree: Tree | None = json.loads(path.read_text()) if path.is_file() else None
    return tree


def write_json(path: Path, tree: Any) -> None:
    """With null for numbers that are not finite."""
    write_whole(path, (json.dumps(plain(tree), indent=1) + "\n").encode())


def plain(tree: Any) -> Any:
    """What JSON can say, all the way down."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else finite(tree)


if __name__ == "__main__":
    sys.exit(main())
