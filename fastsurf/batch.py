"""Many scenes: each one `fastsurf reconstruct` in a process of its own, here (`here`) or on a cluster (cluster.py).

DIR holds NAME.ply and NAME.run/ for each scene, summary.jsonl (a line for each end of a scene, the latest counts) and summary.md.
NAME.run/batch.json says what the run was made from: a scene whose settings, files and checkpoint format are still those is not made again
once it is finished, and goes on from its checkpoint if it is not. So the same command is the retry.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import __version__
from .checkpoint import FORMAT, read_header
from .child import Attended, ChildError
from .compare import budget_text
from .config import Config, to_dict, to_toml
from .errors import CheckpointError, FastsurfError, SceneError, UsageError
from .files import write_whole
from .hooks import Hook, Note, PhaseStarted, Saved, SceneState, TrainState, announce
from .meshio import read_mesh
from .reconstruction import CHECKPOINT
from .runs import write_json
from .tables import escaped, markdown_table, text, text_table
from .ui.jsonlines import finite, read_event, torn

RECORD, SETTINGS, LOG = "batch.json", "batch.toml", "batch.log"  # in NAME.run
SUMMARY = "summary"  # .jsonl, .md
DONE, KEPT, STOPPED, FAILED, WAITING = "done", "kept", "stopped", "failed", "waiting"
CAMERA_FILES = (".json", ".npz", ".npy", ".txt")  # a scene named by one of these is the folder round it; other files are videos
TICK = 0.2  # seconds between two looks at whether the user wants to stop
COLUMNS = [("scene", "name", ""), ("state", "state", ""), ("faces", "faces", ".0f"), ("steps", "steps", ".0f"), ("PSNR", "psnr", ".2f"),
           ("wall s", "wall_seconds", ".1f"), ("CPU s", "cpu_seconds", ".1f"), ("MB", "peak_mb", ".0f")]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A scene, and how and where it is made."""

    name: str
    scene: Path
    out: Path  # folder of the batch
    config: Config
    format: str | None
    identity: str  # of settings and files, see `fingerprint`
    anew: bool = False  # even where an unfinished run could go on

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / f"{self.name}.run"

    @property
    def mesh(self) -> Path:
        """The mesh."""
        return self.out / f"{self.name}.ply"


@dataclass(frozen=True)
class Row:
    """What came of a scene: a line of summary.jsonl. Costs are of the last attempt."""

    name: str
    scene: str
    state: str  # done, kept (finished before), stopped (early, by the user), failed, waiting
    identity: str
    note: str = ""  # why there is no mesh, or none yet
    notes: tuple[str, ...] = ()  # what the reconstruction said the user should know
    mesh: str = ""  # in the folder of the batch
    faces: int | None = None
    steps: int | None = None
    psnr: float | None = None  # dB, of the last training steps
    train_seconds: float | None = None  # resumed parts included
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    finished: str = ""
    version: str = __version__


@dataclass(frozen=True)
class Place:
    """What a scene may use of a machine."""

    threads: int
    gpu: str | None = None  # as in CUDA_VISIBLE_DEVICES; None: as it is


Told = SceneState | Row
Runner = Callable[[Sequence[Job], Callable[[], bool]], Generator[Told, None, None]]
"""Makes jobs, and yields how they stand and what came of each; the function is asked whether to finish early. Closed, it ends them all."""


def batch(
    scenes: Sequence[str | Path],
    out: str | Path,
    config: Config | None = None,
    *,
    run: Runner | None = None,
    shard: tuple[int, int] = (1, 1),
    format: str | None = None,
    force: bool = False,
    hooks: Sequence[Hook] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """Reconstruct every scene that is not finished yet, and write the summary; rows are sorted by name.

    Args:
        run: who makes them: `here(...)`, one after the other if not given, or `cluster.on_ray(...)`.
        shard: (i, n) takes the i-th of n parts, the first is 1; the parts of the same scenes are always the same.
        format: name of the scenes' format, where it can't be told.
        force: replace what is no batch's or another scene's, and start unfinished scenes anew.
        should_stop: True lets the running scenes finish early with a mesh, and begins no other.

    Raises:
        UsageError: no scenes, or DIR holds what would be lost. What happens to a scene is in its row instead.
    """
    out, events = Path(out).absolute(), announce(hooks)
    jobs = plan(scenes, out, config or Config(), format, force)[shard[0] - 1 :: shard[1]]
    rows: dict[str, Row] = {}
    todo = []
    for job in jobs:
        record = _record(job.run)
        if _finished(job, record):
            rows[job.name] = replace(_row_from(record), state=KEPT)
            events(SceneState(job.name, KEPT, 1.0))
        else:
            todo.append(job)
            events(SceneState(job.name, WAITING))
    out.mkdir(parents=True, exist_ok=True)
    listed = {row.name for row in read_summary(out)}
    for row in [row for row in rows.values() if row.name not in listed]:
        _append(out, replace(row, state=DONE))
    told = (run or here())(todo, should_stop)
    with contextlib.closing(told):
        for news in told:
            if isinstance(news, Row):
                rows[news.name] = news
                _append(out, news)
                _write_table(out, config or Config())
                events(SceneState(news.name, news.state, 1.0, news.wall_seconds or 0.0, None, _brief(news)))
            elif news.name not in rows:
                events(news)
    for job in todo:
        rows.setdefault(job.name, Row(job.name, str(job.scene), WAITING, job.identity))
    _write_table(out, config or Config())
    events(Saved("summary", out / f"{SUMMARY}.md"))
    return [rows[job.name] for job in jobs]


# which scenes, under which names


def plan(scenes: Sequence[str | Path], out: Path, config: Config, format: str | None = None, force: bool = False) -> list[Job]:
    """A job for each scene, sorted by name; a scene given twice is one.

    Raises:
        UsageError: see `batch`.
    """
    if not scenes:
        raise UsageError("batch wants SCENES: folders or files with photographs and cameras, photographs alone, or videos")
    where = replace(config.scene, masks=_absolute(config.scene.masks), ignore=_absolute(config.scene.ignore))
    config = replace(config, scene=where, poses=replace(config.poses, masks=_absolute(config.poses.masks)))
    named = names_of([Path(scene).absolute() for scene in scenes])
    jobs = [Job(name, path, out, config, format, fingerprint(path, config, format, out), force) for name, path in sorted(named.items())]
    for job in jobs if not force else []:
        record = _record(job.run)
        if record is None and (job.mesh.exists() or (job.run / CHECKPOINT).exists()):
            found = job.mesh if job.mesh.exists() else job.run
            raise UsageError(f"{found} is of no batch: --force replaces it, -o DIR takes another folder")
        if record is not None and record.get("scene") != str(job.scene):
            raise UsageError(f"{job.run} was made from {record.get('scene')}, not {job.scene}: --force replaces it, -o DIR another folder")
    return jobs


def names_of(scenes: Sequence[Path]) -> dict[str, Path]:
    """A name for each path: its folder's (a video's own), with as many of the folders above as tell it from the others."""
    paths = list(dict.fromkeys(scenes))
    parts = {path: [part for part in _parts(path) if part] or ["scene"] for path in paths}
    names: dict[Path, str] = {}
    for depth in range(1, 1 + max(len(p) for p in parts.values())):
        found = {path: "-".join(p[-depth:]) for path, p in parts.items() if path not in names}
        count = Counter(name.casefold() for name in [*found.values(), *names.values()])
        names |= {path: name for path, name in found.items() if count[name.casefold()] == 1}
    left = {path: f"{'-'.join(parts[path][-1:])}-{_digest(str(path))[:8]}" for path in paths if path not in names}
    return {name: path for path, name in (names | left).items()}


def _parts(path: Path) -> tuple[str, ...]:
    parts = path.parts[1:]  # without the root
    if path.suffix.lower() in CAMERA_FILES and not path.is_dir():
        return parts[:-1]
    return (*parts[:-1], path.stem) if path.is_file() else parts


def fingerprint(scene: Path, config: Config, format: str | None, out: Path) -> str:
    """Of all that decides what a run learns: settings, names, sizes and times of the scene's files, and the checkpoint's format.

    Photographs are not read for it. How many threads there are does not matter.
    """
    root = scene.parent if scene.suffix.lower() in CAMERA_FILES and scene.is_file() else scene
    given = (config.scene.masks, config.poses.masks, config.scene.ignore)
    folders = [Path(folder) for folder in given if os.path.isabs(folder)]
    files = [_files(folder, out) for folder in (root, *folders)]
    return _digest(json.dumps([FORMAT, to_dict(replace(config, threads=0)), format, files]))


def _files(root: Path, out: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, nanoseconds) of every file below `root` that isn't hidden, sorted; `out` is left out."""
    if root.is_file():
        return [(root.name, root.stat().st_size, root.stat().st_mtime_ns)]
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and Path(folder, name) != out]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.exists():  # else a link to nowhere
                found.append((path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns))
    return sorted(found)


def _absolute(given: str) -> str:
    return str(Path(given).absolute()) if given not in ("auto", "none", "ignore") else given


def _digest(words: str) -> str:
    return hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()


def _record(run: Path) -> dict[str, Any] | None:
    """batch.json, None if there is none that can be read."""
    try:
        tree = json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _row_from(tree: Mapping[str, Any] | None) -> Row:
    """A row as it was written, by whichever version."""
    known = {f.name for f in dataclasses.fields(Row)}
    given = {key: value for key, value in (tree or {}).items() if key in known}
    return Row(**{"name": "", "scene": "", "state": "", "identity": ""} | given)


def _finished(job: Job, record: Mapping[str, Any] | None) -> bool:
    return record is not None and record.get("state") == DONE and record.get("identity") == job.identity and job.mesh.is_file()


# one scene


def make(job: Job, place: Place, tell: Callable[[SceneState], None], attend: Callable[[Attended], None]) -> Row:
    """Reconstruct a scene, or go on where it was; whatever happens to it is in the row.

    Args:
        tell: called with how it stands, about once a second.
        attend: called with the process, to be asked to finish or ended.
    """
    watch = _Watch(job, tell)
    row = Row(job.name, str(job.scene), FAILED, job.identity)
    watch.tell("starting")
    start, code = time.monotonic(), 0
    used: dict[str, Any] = {}
    try:
        words = _prepare(job, place)
        variables = {"CUDA_VISIBLE_DEVICES": place.gpu} if place.gpu is not None else {}
        child = Attended(words, job.run / LOG, "the reconstruction", variables)
        attend(child)
        try:
            used |= child.run(watch)
        except ChildError as e:
            code = e.code
            if not watch.meshed or code != 130:
                row = replace(row, note=" ".join(str(e).split()))
        if watch.meshed and code in (0, 130):
            row = replace(row, state=STOPPED if code else DONE, mesh=job.mesh.name, faces=len(read_mesh(job.mesh).faces))
        elif code == 130:
            row = replace(row, state=STOPPED, note="stopped before there was a mesh; the same command goes on")
        row = replace(row, notes=tuple(watch.notes), **watch.numbers, **used, finished=time.strftime("%Y-%m-%d %H:%M:%S"))
        row = replace(row, wall_seconds=time.monotonic() - start)
        write_json(job.run / RECORD, dataclasses.asdict(row))
    except (FastsurfError, OSError) as e:
        row = replace(row, state=FAILED, note=" ".join(str(e).split()))
    return row


def _prepare(job: Job, place: Place) -> list[str]:
    """The run folder ready, what is out of date gone from it; the words of the command."""
    if not job.scene.exists():
        raise SceneError(f"no such file or folder: {job.scene}")
    record = _record(job.run)
    same = record is not None and record.get("identity") == job.identity and not job.anew
    go_on = same and _can_go_on(job.run / CHECKPOINT)
    if not go_on:
        (job.run / CHECKPOINT).unlink(missing_ok=True)
    write_json(job.run / RECORD, {"name": job.name, "scene": str(job.scene), "state": "begun", "identity": job.identity})
    write_whole(job.run / SETTINGS, to_toml(job.config).encode())
    words = ["reconstruct", str(job.scene), "--config", str(job.run / SETTINGS), "--run", str(job.run), "-o", str(job.mesh)]
    words += ["--threads", str(place.threads), "--json", "-", "--resume" if go_on else "--force"]
    return [*words, *(["--format", job.format] if job.format else [])]


def _can_go_on(checkpoint: Path) -> bool:
    try:
        read_header(checkpoint)
    except CheckpointError:
        return False
    return True


class _Watch:
    """Follows the JSON lines of one reconstruction."""

    def __init__(self, job: Job, tell: Callable[[SceneState], None]) -> None:
        self._job, self._tell, self._start = job, tell, time.monotonic()
        self._phase = ""
        self.meshed = False
        self.notes: list[str] = []
        self.numbers: dict[str, Any] = {}

    def __call__(self, line: str) -> None:
        match read_event(line):
            case PhaseStarted(name):
                self._phase = name
                self.tell(name)
            case TrainState() as state:
                psnr = state.psnr if math.isfinite(state.psnr) else None
                self.numbers = {"steps": state.step, "psnr": psnr, "train_seconds": state.seconds}
                left = state.seconds_left if math.isfinite(state.seconds_left) else None
                self.tell(self._phase, state.progress, left, f"step {state.step}  psnr {state.psnr:.1f} dB")
            case Saved("mesh", path):
                self.meshed = self.meshed or path == self._job.mesh
            case Note(words):
                self.notes.append(words)
            case _:
                pass

    def tell(self, state: str, done: float = 0.0, left: float | None = None, detail: str = "") -> None:
        """Pass on how the scene stands."""
        self._tell(SceneState(self._job.name, state, done, time.monotonic() - self._start, left, detail))


# on this machine


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places(jobs: int, gpus: Sequence[str] = (), threads: int = 0) -> list[Place]:
    """`jobs` of them: GPUs in turn, and the cores shared out as evenly as they go, unless each is to have `threads`."""
    each, more = divmod(cores(), jobs)
    return [Place(threads or max(1, each + (k < more)), gpus[k % len(gpus)] if gpus else None) for k in range(jobs)]


def here(jobs: int = 1, gpus: Sequence[str] = (), threads: int = 0) -> Runner:
    """Makes scenes on this machine.

    Args:
        jobs: scenes at a time.
        gpus: as in CUDA_VISIBLE_DEVICES; each scene gets one of them.
        threads: of each scene; 0 shares out all.
    """

    def run(todo: Sequence[Job], should_stop: Callable[[], bool]) -> Generator[Told, None, None]:
        waiting, crew = deque(todo), _Crew()
        told: queue.SimpleQueue[Told | BaseException] = queue.SimpleQueue()

        def take() -> Job | None:
            try:
                return waiting.popleft()
            except IndexError:
                return None

        def work(place: Place) -> None:
            try:
                while (job := take()) is not None:
                    told.put(make(job, place, told.put, crew.attend))
            except BaseException as e:  # a fault of ours: not to be lost with the thread
                told.put(e)

        workers = [threading.Thread(target=work, args=(place,)) for place in places(min(jobs, max(len(todo), 1)), gpus, threads)]
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers) or not told.empty():
                if should_stop():
                    waiting.clear()
                    crew.finish()
                try:
                    news = told.get(timeout=TICK)
                except queue.Empty:
                    continue
                if isinstance(news, BaseException):
                    raise news
                yield news
        finally:
            waiting.clear()
            crew.end()
            for worker in workers:
                worker.join()

    return run


class _Crew:
    """The processes at work; all of them are asked to finish, or ended, those that come later, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: list[Attended] = []
        self._finishing = self._ending = False

    def attend(self, child: Attended) -> None:
        with self._lock:
            self._children.append(child)
            if self._ending:
                child.end()
            elif self._finishing:
                child.interrupt()

    def finish(self) -> None:
        with self._lock:
            for child in self._children if not self._finishing else ():
                child.interrupt()
            self._finishing = True

    def end(self) -> None:
        with self._lock:
            self._ending = True
            for child in self._children:
                child.end()


# the summary


def _append(out: Path, row: Row) -> None:
    """A line of summary.jsonl in one write, so that lines of several processes don't mix."""
    path = out / f"{SUMMARY}.jsonl"
    line = (json.dumps(finite(dataclasses.asdict(row)), ensure_ascii=False) + "\n").encode(errors="replace")
    line = b"\n" + line if torn(path) else line
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)


def read_summary(out: Path) -> list[Row]:
    """The latest line of each scene, sorted by name; lines that a kill left torn are skipped."""
    rows: dict[str, Row] = {}
    path = out / f"{SUMMARY}.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = _row_from(json.loads(line))
        except (ValueError, TypeError, AttributeError):
            continue
        rows[row.name] = row
    return [rows[name] for name in sorted(rows)]


def _write_table(out: Path, config: Config) -> None:
    rows = read_summary(out)
    count = Counter(row.state for row in rows)
    body = [[*map(escaped, cells), row.mesh] for cells, row in zip(table_cells(rows), rows, strict=True)]
    lines = [f"# {len(rows)} scenes: {', '.join(f'{n} {state}' for state, n in sorted(count.items())) or 'none'}", ""]
    lines += [f"{budget_text(config)} for each, fastsurf {__version__}.", "", *markdown_table([*(h for h, _, _ in COLUMNS), "mesh"], body)]
    said = [f"- {row.name}: {words}" for row in rows for words in ([row.note] if row.note else []) + list(row.notes)]
    write_whole(out / f"{SUMMARY}.md", "\n".join([*lines, *([""] if said else []), *said, ""]).encode(errors="replace"))


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line of text cells for each row, as COLUMNS has them."""
    return [[value if isinstance(value := getattr(row, key), str) else text(value, form) for _, key, form in COLUMNS] for row in rows]


def summary(rows: Sequence[Row]) -> list[str]:
    """The table for a terminal, and why some have no mesh."""
    lines = text_table([heading for heading, _, _ in COLUMNS], table_cells(rows)) if rows else ["no scenes in this part"]
    return [*lines, *(f"{row.name}: {row.note}" for row in rows if row.note)]


def _brief(row: Row) -> str:
    return row.note or (f"{row.faces:,} faces" if row.faces is not None else "")
