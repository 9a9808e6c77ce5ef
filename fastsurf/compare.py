"""Several methods on the same photographs, each for the same time: one table, one picture.

Every method is `fastsurf reconstruct` in a process of its own, one after the other. The folder holds compare.md, compare.json and
compare.png, written anew after each; METHOD/ keeps a method's run, its log, its held-out views and its pictures. What is finished there
is not made again; what failed is.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import __version__
from .child import run_python
from .config import Config, SceneConfig, to_dict, to_toml
from .errors import FastsurfError, UsageError
from .figures import contact_sheet
from .files import png, write_whole
from .hooks import Event, Hook, MeshProgress, Note, Phases, PhaseStarted, Saved, TrainState, announce
from .meshio import read_mesh
from .metrics import Threshold, Truth
from .reconstruction import MESH
from .runs import read_json, write_json
from .scene import Scene, load_scene
from .scoring import Scale, Tree, draw_view, error_bar, error_scale, load_picture, score_run, score_surface, truth_of
from .shade import Picture, draw
from .tables import COLUMNS, escaped, in_brief, markdown_table, text, text_table
from .ui.jsonlines import finite, read_event

REPORT = "compare"  # .md, .json, .png
SHOWN = ("chamfer_pct", "f_score_05", "f_score", "normal_error_deg", "psnr", "ssim", "wall_seconds", "steps", "faces", "watertight")
PICTURES = ("photograph", "rendering", "normals", "shaded", "error")
NAME = 16  # characters of a name on a terminal
HOLDOUT = 8  # every n-th view is held out where neither the scene nor the user says otherwise


@dataclass(frozen=True)
class Contender:
    """A row of the table: a method to run, or a mesh that another program made."""

    name: str
    config: Config | None = None
    mesh: Path | None = None  # where config is None; without either the row says what is missing


@dataclass
class Row:
    """What came of a contender."""

    name: str
    mesh: str = ""  # as the report names it
    scores: Tree = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)  # of one view, by column
    note: str = ""  # why there are no scores
    failed: bool = False


class Ground:
    """What all are measured against, and where the results go."""

    def __init__(self, path: Path, format: str | None, config: SceneConfig, truth: Path | None, thresholds: Sequence[Threshold], out: Path):
        self.path, self.format, self.config, self.thresholds, self.out = path, format, config, thresholds, out
        self._scenes: dict[SceneConfig, Scene] = {}
        self.truth: Truth | None = truth_of(path, truth)
        self.scale: Scale | None = error_scale(self.truth, self.scene(config)) if self.truth is not None else None
        order = self.scene(config).test or self.scene(config).train
        self.view = order[len(order) // 2]  # in the picture: a held-out one where there is any

    def scene(self, config: SceneConfig) -> Scene:
        """The photographs as a method reads them."""
        if config not in self._scenes:
            self._scenes[config] = load_scene(self.path, config, self.format)
        return self._scenes[config]


def compare(
    scene: str | Path,
    contenders: Sequence[Contender],
    out: str | Path,
    truth: str | Path | None = None,
    format: str | None = None,
    thresholds: Sequence[Threshold] = (),
    force: bool = False,
    hooks: Sequence[Hook] = (),
) -> list[Row]:
    """Run what has not been run yet, score all, and write the report.

    Args:
        truth: a mesh, points or a folder with gt/; if not given, gt/ beside the photographs where that exists.
        thresholds: at which precision, recall and F1 are wanted besides.
        force: replace what other settings left in METHOD/.

    Raises:
        UsageError: nothing to compare, or METHOD/ holds something else.
        SceneError, MeshError: photographs or truth can't be used. What happens to a method is in its row instead.
    """
    path, out, events = Path(scene), Path(out), announce(hooks)
    if not contenders:
        raise UsageError("nothing to compare: name methods, or a mesh")
    for contender in contenders:
        if contender.config is not None:
            _check_free(out / contender.name, _identity(path, contender.config), force)
    config = next((c.config.scene for c in contenders if c.config is not None), SceneConfig(holdout=HOLDOUT))
    ground = Ground(path, format, config, Path(truth) if truth else None, thresholds, out)
    rows: list[Row] = []
    phases = Phases(events)
    for contender in contenders:
        with phases(contender.name) as phase:
            row = _row(contender, ground, events)
            phase.detail = row.note or in_brief(row.scores) or "done"
        rows.append(row)
        _report(rows, contenders, ground)
    events(Saved("comparison", out / f"{REPORT}.md"))
    return rows


def _row(contender: Contender, ground: Ground, events: Hook) -> Row:
    """Run and score one of them; what goes wrong is its own affair."""
    row = Row(contender.name)
    try:
        if contender.config is not None:
            _score_made(row, contender.config, ground, events)
        elif contender.mesh is not None:
            _score_given(row, contender.mesh, ground)
        else:
            row.note = "no mesh: make one with these cameras in COLMAP or OpenMVS, and give it as --mesh FILE"
    except FastsurfError as e:
        row.note, row.failed = f"failed: {' '.join(str(e).split())}", True
    return row


def _score_given(row: Row, path: Path, ground: Ground) -> None:
    """A mesh from elsewhere; its vertex colours stand for a rendering."""
    scene, mesh = ground.scene(ground.config), read_mesh(path)
    row.scores, row.mesh = score_surface(mesh, scene, ground.truth, thresholds=ground.thresholds), str(path)
    view = scene.capture.views[ground.view]
    colors = draw(mesh, view.camera, view.c2w, "color") if mesh.colors is not None else None
    row.pictures = draw_view(mesh, scene, ground.view, colors, ground.scale)


def _score_made(row: Row, config: Config, ground: Ground, events: Hook) -> None:
    folder = ground.out / row.name
    made = _make(row.name, config, ground, events)
    scene = ground.scene(config.scene)
    scored = score_run(folder, config, scene, ground.truth, thresholds=ground.thresholds, hooks=[_only_progress(events)])
    row.scores = {key: made[key] for key in ("wall_seconds", "cpu_seconds", "peak_mb")} | scored.scores
    row.mesh = f"{row.name}/run/{MESH}"
    row.pictures = draw_view(scored.mesh, scene, ground.view, scored.views.get(ground.view), ground.scale)
    for name, picture in row.pictures.items():
        write_whole(folder / "pictures" / f"{name}.png", png(picture))


def _make(name: str, config: Config, ground: Ground, events: Hook) -> Tree:
    """Reconstruct in a child process, unless that was done with these settings; what it cost.

    Raises:
        ChildError: it failed.
    """
    folder, identity = ground.out / name, _identity(ground.path, config)
    made = read_json(folder / "made.json")
    if made is not None and made["identity"] == identity:
        events(Note(f"{name}: kept, as made on {made['finished']}"))
        return made
    shutil.rmtree(folder, ignore_errors=True)
    write_whole(folder / "config.toml", to_toml(config).encode())
    words = ["-m", "fastsurf", "reconstruct", str(ground.path), "--config", str(folder / "config.toml"), "--run", str(folder / "run")]
    words += ["--json", "-", *(["--format", ground.format] if ground.format else [])]
    used = run_python(words, folder / "log.txt", "the reconstruction", _relay(name, events))
    made = {"identity": identity, **used, "finished": time.strftime("%Y-%m-%d %H:%M"), "version": __version__}
    write_json(folder / "made.json", made)
    return made


def _identity(scene: Path, config: Config) -> Tree:
    """Of a run; as JSON gives it back."""
    tree: Tree = finite({"scene": str(scene.resolve()), "config": to_dict(config)})
    return tree


def _check_free(folder: Path, identity: Tree, force: bool) -> None:
    """Refuse to replace what somebody may still want.

    Raises:
        UsageError: it is not of ours; or, unless forced, a finished run with other settings.
    """
    if folder.exists() and not (folder / "config.toml").is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no part of a comparison: -o DIR takes another folder")
    made = read_json(folder / "made.json")
    if made is None or made["identity"] == identity or force:
        return
    changed = "; ".join(f"{key.removeprefix('config.')} {old}, now {new}" for key, old, new in _changes(made["identity"], identity)[:3])
    raise UsageError(f"{folder} holds a run with other settings ({changed}): --force replaces it, -o DIR takes another folder")


def _changes(then: Tree, now: Tree, prefix: str = "") -> list[tuple[str, object, object]]:
    found: list[tuple[str, object, object]] = []
    for key in dict.fromkeys([*then, *now]):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found


def _relay(name: str, events: Hook) -> Callable[[str], None]:
    """From the child's JSON lines to our hooks: its steps, progress and notes; its phases only as far as the bar begins again."""

    def tell(line: str) -> None:
        match read_event(line):
            case TrainState() as state:
                events(state)
            case Note(words):
                events(Note(f"{name}: {words}"))
            case MeshProgress() as progress:
                events(progress)
            case PhaseStarted(phase):
                events(MeshProgress(0.0, phase))
            case _:
                pass

    return tell


def _only_progress(events: Hook) -> Hook:
    """What is rendered for the scores is no result of its own."""

    def tell(event: Event) -> None:
        if isinstance(event, MeshProgress):
            events(event)

    return tell


# the report


def _report(rows: Sequence[Row], contenders: Sequence[Contender], ground: Ground) -> None:
    out, scene = ground.out, ground.scene(ground.config)
    drawn = [row for row in rows if row.pictures]
    if drawn:
        columns = [name for name in PICTURES if any(name in row.pictures for row in drawn)]
        none = load_picture(Path("none"))
        table = [(f"{row.name}:   {in_brief(row.scores)}", [row.pictures.get(name, none) for name in columns]) for row in drawn]
        foot = error_bar(ground.scale.limit, ground.scale.footprint) if ground.scale is not None else None
        write_whole(out / f"{REPORT}.png", png(contact_sheet(columns, table, foot)))
    about = {
        "scene": str(ground.path), "view": scene.capture.views[ground.view].name, "fastsurf": __version__, "machine": platform.machine(),
        "cores": os.cpu_count(), "methods": {c.name: to_dict(c.config) for c in contenders if c.config is not None},
    }  # fmt: skip
    cells = [{"method": row.name, "mesh": row.mesh, "note": row.note, "failed": row.failed, "scores": row.scores} for row in rows]
    write_json(out / f"{REPORT}.json", {**about, "rows": cells})
    write_whole(out / f"{REPORT}.md", "\n".join([*_markdown(rows, contenders, about, bool(drawn)), ""]).encode())


def _markdown(rows: Sequence[Row], contenders: Sequence[Contender], about: Tree, drawn: bool) -> list[str]:
    budgets = dict.fromkeys(budget_text(c.config) for c in contenders if c.config is not None)
    lines = [
        f"# Methods compared on {about['scene']}", "",
        f"{'; '.join(budgets) or 'Nothing'} for each method, one after the other, on {about['cores']} cores ({about['machine']}), "
        f"fastsurf {about['fastsurf']}.", "",
    ]  # fmt: skip
    heads, cells = table_cells(rows)
    lines += markdown_table([*heads, "mesh"], [[*map(escaped, row), done.mesh] for row, done in zip(cells, rows, strict=True)])
    if steps := sweep_cells(rows):
        lines += ["", "## Precision, recall and F1", "", *markdown_table(*steps)]
    if notes := [f"- {row.name}: {row.note}" for row in rows if row.note]:
        lines += ["", *notes]
    if drawn:
        lines += ["", f"![{about['view']}]({REPORT}.png)"]
    return [*lines, *LEGEND.splitlines()]


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line of text cells for each row; columns that nobody has are left out."""
    known = {key for row in rows for key, value in row.scores.items() if value is not None}
    used = [(heading, key, form) for key in SHOWN if key in known for heading, other, form in COLUMNS if other == key]
    body = [[row.name, *(text(row.scores.get(key), form) for _, key, form in used)] for row in rows]
    return ["method", *(heading for heading, _, _ in used)], body


def sweep_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]] | None:
    """The same of the sweep: a line for each threshold of each row; None without one."""
    body = [
        [row.name, f"{step['threshold']:.4g}", f"{step['percent']:.3g}", *(f"{step[key]:.4f}" for key in ("precision", "recall", "f1"))]
        for row in rows for step in row.scores.get("sweep", [])
    ]  # fmt: skip
    return (["method", "threshold", "% of diagonal", "precision", "recall", "F1"], body) if body else None


def summary(rows: Sequence[Row]) -> list[str]:
    """The table turned round for a terminal, a method a column, and what there is to say besides."""
    (_, *headings), body = table_cells(rows)
    lines = [[heading, *(cells[k] for cells in body)] for k, heading in enumerate(headings, 1)]
    for k, step in enumerate(next((row.scores["sweep"] for row in rows if "sweep" in row.scores), [])):
        found = [row.scores["sweep"][k]["f1"] if "sweep" in row.scores else None for row in rows]
        lines.append([f"F1@{step['threshold']:.3g}", *(text(f1, ".4f") for f1 in found)])
    names = ["", *(row.name if len(row.name) <= NAME else row.name[: NAME - 1] + "…" for row in rows)]
    return [*(text_table(names, lines) if lines else []), *(f"{row.name}: {row.note}" for row in rows if row.note)]


def budget_text(config: Config) -> str:
    """How long a method may take."""
    if config.train.steps is not None:
        return f"{config.train.steps} steps"
    return "the default time" if config.train.minutes is None else f"{config.train.minutes:g} min from photographs to mesh"


LEGEND = """
Chamfer: mean of both directions' mean distances, in percent of the diagonal of the truth's box. F: harmonic mean of the shares of either
surface within 0.5 or 1 % of the diagonal of the other. Normals: mean angle. Of a mesh those parts count that a training view sees. PSNR
and SSIM: held-out views. Wall: from the command to the file. A mesh from elsewhere has no rendering: its vertex colours are shown."""
