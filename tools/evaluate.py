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
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastsurf
from fastsurf.child import ChildError, run_python
from fastsurf.config import Config, from_dict, load_config, to_dict, to_toml
from fastsurf.dtu import read_observation, scan_number, score_dtu
from fastsurf.errors import FastsurfError, UsageError
from fastsurf.figures import contact_sheet
from fastsurf.files import write_whole
from fastsurf.metrics import Truth
from fastsurf.pictures import png
from fastsurf.runs import read_json, write_json
from fastsurf.scene import Scene, load_scene
from fastsurf.scoring import Scored, Tree, draw_view, error_bar, error_scale, load_picture, score_run, truth_of
from fastsurf.tables import COLUMNS, escaped, in_brief, markdown_table, text

PACKAGE = Path(fastsurf.__file__).parent


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
        except ChildError as e:
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
    for words in given:
        name, equals, path = words.partition("=")
        if not equals:
            if len(scenes) != 1:
                raise UsageError(f"--gt {words}: with {len(scenes)} scenes say whose it is: --gt SCENE={words}")
            name, path = scenes[0], words
        if name not in scenes:
            raise UsageError(f"--gt {words}: no scene {name!r} among {', '.join(scenes)}")
        if not Path(path).exists():
            raise UsageError(f"--gt {words}: no {path}")
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
        ChildError: one of them failed.
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
        usage = run_python(words, folder / "log.txt", "the reconstruction")
        made = {**usage, "load_before": load, "sources": sources(), "commit": commit(), "finished": time.time()}
        write_json(folder / "made.json", made)
    (folder / "scores.json").unlink(missing_ok=True)
    run_python([str(Path(__file__).resolve()), "--score-cell", str(folder)], folder / "scoring.txt", "the scoring")
    if not keep_checkpoint:
        (folder / "run" / "checkpoint.safetensors").unlink(missing_ok=True)
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    return in_brief(scores)


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


def score(folder: Path) -> None:
    """Score the finished run in a cell's folder, in this process: scores.json, rendered views and pictures."""
    cell = read_json(folder / "cell.json")
    assert cell is not None, folder
    path, config, scoring = Path(cell["path"]), from_dict(cell["config"], str(folder / "cell.json")), cell["scoring"]
    scene, made = load_scene(path, config.scene), read_json(folder / "made.json") or {}
    truth = truth_of(path, Path(scoring["gt"]) if scoring["gt"] else None)
    scored = score_run(folder, config, scene, truth, scoring["samples"])
    scores = {key: made[key] for key in ("wall_seconds", "cpu_seconds", "peak_mb")} | scored.scores
    home = path if path.is_dir() else path.parent
    if scoring["dtu"]:
        observed = read_observation(Path(scoring["dtu"]), scan_number(home))
        scores |= {f"dtu_{k}": v for k, v in score_dtu(scored.mesh, observed).items()}
    external = {}
    if scoring["score_mesh"] and truth is not None:
        external["mesh"] = ask(scoring["score_mesh"], [folder / "run" / "mesh.ply", home], folder / "score_mesh.json")
    if scoring["score_images"] and any(scene.capture.views[i].split == "test" for i in scene.test):
        external["images"] = ask(scoring["score_images"], [folder / "views", home], folder / "score_images.json")
    if scoring["pictures"]:
        draw_cell(folder / "pictures", scored, truth, scene)
    write_json(folder / "scores.json", {"scoring": scoring, "scores": scores, "views": scored.per_view, "external": external})


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


def draw_cell(folder: Path, scored: Scored, truth: Truth | None, scene: Scene) -> None:
    """Two views, held-out ones where there are any: photograph, rendering, normals, shaded mesh, error, each a PNG."""
    shutil.rmtree(folder, ignore_errors=True)
    scale = error_scale(truth, scene) if truth is not None else None
    order = scene.test or scene.train
    for k, i in enumerate(dict.fromkeys([order[0], order[len(order) // 2]])):
        for name, picture in draw_view(scored.mesh, scene, i, scored.views.get(i), scale).items():
            write_whole(folder / f"{k}-{name}.png", png(picture))
    if scale is not None:
        write_json(folder / "error.json", {"limit": scale.limit, "footprint": scale.footprint})


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
        order = ["photograph", "rendering", "normals", "shaded", "error"]
        columns = [name for k in (0, 1) for kind in order if (name := f"{k}-{kind}") in known]
        table = [(title, [load_picture(folder / f"{name}.png") for name in columns]) for title, folder in rows.values()]
        scale = next((tree for _, folder in rows.values() if (tree := read_json(folder / "error.json"))), None)
        foot = error_bar(scale["limit"], scale["footprint"]) if scale is not None else None
        written.append(out / f"{scene}.png")
        write_whole(written[-1], png(contact_sheet([name.partition("-")[2] for name in columns], table, foot)))
    return written


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
        lines += ["", "## Medians over seeds (± half of greatest less least)", "", *markdown_table([*heads[:3], "seeds", *headings], rows)]
    rows = []
    for cell in cells:
        row = [str(cell[h]) for h in heads]
        if "failed" in cell:
            row.append("**failed**: " + escaped(cell["failed"]))
        else:
            row += [text(cell["scores"].get(key), form) for _, key, form in used] + [cell[name] for name in sources_column]
        rows.append(row)
    lines += ["", "## Cells", "", *markdown_table([*heads, *(headings or ["outcome"]), *sources_column], rows)]
    for kind in ("mesh", "images"):
        asked = [cell for cell in finished if kind in cell["external"]]
        keys = list(dict.fromkeys(key for cell in asked for key in cell["external"][kind]))
        rows = [[*(str(cell[h]) for h in heads), *(text(cell["external"][kind].get(key), ".5g") for key in keys)] for cell in asked]
        if rows:
            lines += ["", f"## What the other program says of the {kind}", "", *markdown_table([*heads, *keys], rows)]
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


if __name__ == "__main__":
    sys.exit(main())
