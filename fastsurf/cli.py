"""argv → options → one verb. The only module that parses, prints and exits; everything else raises.

Handlers for Ctrl-C, SIGTERM and SIGHUP are installed before anything heavy is imported, and each verb imports what it needs.
"""

import contextlib
import difflib
import errno
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from . import __version__
from .errors import FastsurfError, UsageError

if TYPE_CHECKING:
    from .hooks import Control, Event, Hook, Phases
    from .mesh import Mesh
    from .options import Batch, Compare, Completion, Demo, Eval, Info, MeshAgain, Outputs, Poses, Reconstruct, Render, View
    from .output import Output
    from .solidity import Report

T = TypeVar("T")

STOPPED = 130
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
MESHES = (".ply", ".obj", ".glb", ".stl")
HELP = """\
usage: fastsurf VERB ...        fastsurf SCENE -o mesh.ply  means  fastsurf reconstruct SCENE -o mesh.ply

Photographs in, a solid coloured surface mesh out.

  info SCENE                    what was found, and whether it can work; info --backends: what can compute here
  poses PHOTOS -o SCENE         cameras for photographs that have none, or for a video
  reconstruct SCENE -o FILE     the main job: photographs (their cameras are found if need be) to a mesh
  mesh RUN -o FILE              the mesh again, at any resolution; a solid, textured, simplified; or points
  render RUN --views orbit      colour, depth and normal pictures; orbit also as an animation
  eval RUN --gt MESH            scores on held-out views, and against a true surface
  view RUN                      a finished or running run in a browser
  compare SCENE --gt MESH       several methods for the same time each: one table, one picture
  batch SCENES -o DIR           many scenes, on one machine or on a cluster
  demo                          photographs made of a known solid, reconstructed and scored
  completion bash|zsh|fish      a script that completes all this in your shell

  fastsurf VERB --help          the options of a verb, and an example
  fastsurf --version
  --debug                       with any verb: show where an error came from

Exit codes: 0 done, 1 system error (a full disk), 2 wrong usage, 3 unusable input, 4 backend failed, 130 stopped by you with files saved.
"""


class Interrupt:
    """Ctrl-C, SIGTERM, and SIGHUP where there is one. From the start of training on the first asks for an early end of it, which changes
    nothing where it has ended; otherwise, and the second time, all stops. A terminal that is closed may send SIGHUP more than once: that
    is one time."""

    def __init__(self) -> None:
        self.began = time.monotonic()  # the command
        self.count = 0
        self.can_finish = False
        self._raised: float | None = None

    def requested(self) -> bool:
        """Whether to finish early."""
        return self.count > 0

    def watch(self, event: "Event") -> None:
        """A hook: from the start of training there is something to save."""
        from .hooks import PhaseStarted

        if isinstance(event, PhaseStarted) and event.name == "train":
            self.can_finish = True

    def finish(self) -> None:
        """Ask for an early end."""
        self.count = max(self.count, 1)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. It only sets numbers or raises: printing here could meet a print under way."""
        if number == HANGUP and self.count:
            return
        self.count += 1
        if self.can_finish and self.count == 1:
            return
        if self._raised is None:
            self._raised = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._raised > 1.0:  # the way out hangs
            os._exit(STOPPED)

    @property
    def stopped_at_once(self) -> bool:
        """Whether KeyboardInterrupt was raised; libraries may have turned it into something else."""
        return self._raised is not None

    @contextlib.contextmanager
    def installed(self, process_ends: bool) -> Iterator[None]:
        """Handlers in place; only the main thread can have them. If the process ends after that, Ctrl-C then ends it without a word."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = [signal.SIGINT, signal.SIGTERM]
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:  # which nohup wants it to be
            wanted.append(HANGUP)
        before = {s: signal.signal(s, self.handle) for s in wanted}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, signal.SIG_DFL if process_ends else handler)


class Kept:
    """A hook that remembers what a stopped command can go on from."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # of many things, each finished or not
        self.checkpoint: Path | None = None
        self.database: Path | None = None
        self.pictures: Path | None = None  # their folder
        self.files: list[Path] = []  # meshes and points

    def __call__(self, event: "Event") -> None:
        from .hooks import Saved

        match event:
            case Saved("checkpoint", path):
                self.checkpoint = path
            case Saved("database", path):
                self.database = path
            case Saved("picture", path):
                self.pictures = path.parent
            case Saved("mesh" | "points", path):
                self.files.append(path)

    def __str__(self) -> str:
        if self.folder is not None:
            return f"what is finished stays in {self.folder}, and the same command goes on"
        if self.checkpoint is not None:
            return f"the last checkpoint is {self.checkpoint}"
        if self.database is not None:
            return f"{self.database} is kept: the same command goes on from there"
        if self.pictures is not None:
            return f"the pictures made so far are in {self.pictures}: the same command goes on from there"
        return f"finished before: {', '.join(map(str, self.files))}" if self.files else "nothing was saved"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    interrupt, kept = Interrupt(), Kept()
    with interrupt.installed(process_ends=argv is None):
        args = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in args
        try:
            return _run([a for a in args if a != "--debug"], interrupt, kept)
        except BaseException as e:
            if interrupt.stopped_at_once or isinstance(e, KeyboardInterrupt):
                return _fail(f"stopped; {kept}", STOPPED)
            if debug and not isinstance(e, SystemExit):
                raise
            return _explain(e)


def _run(args: list[str], interrupt: Interrupt, kept: Kept) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name that the terminal can't spell is no reason to stop
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"fastsurf {__version__}")
        return 0
    verb, rest = _verb(args)
    from . import options as o

    match _parse(verb, rest):
        case o.Info() as wanted:
            return info(wanted)
        case o.Poses() as wanted:
            return poses(wanted, kept)
        case o.Reconstruct() as wanted:
            return reconstruct(wanted, interrupt, kept)
        case o.MeshAgain() as wanted:
            return mesh(wanted, kept)
        case o.Render() as wanted:
            return render(wanted, kept)
        case o.Eval() as wanted:
            return evaluate(wanted)
        case o.View() as wanted:
            return view(wanted)
        case o.Compare() as wanted:
            return compare(wanted, kept)
        case o.Batch() as wanted:
            return batch(wanted, interrupt, kept)
        case o.Demo() as wanted:
            return demo(wanted, interrupt, kept)
        case o.Completion() as wanted:
            return completion(wanted)
    raise AssertionError(verb)


def _verb(args: list[str]) -> tuple[str, list[str]]:
    """The verb and what follows it; a path or an option in its place means reconstruct."""
    verbs = ("info", "poses", "reconstruct", "mesh", "render", "eval", "view", "compare", "batch", "demo", "completion")
    first = args[0]
    if first in verbs:
        return first, args[1:]
    if first.startswith("-") or os.sep in first or os.path.exists(first):
        return "reconstruct", args
    near = difflib.get_close_matches(first, verbs, n=1)
    raise UsageError(f"{first!r} is neither a verb nor a folder; " + (f"did you mean {near[0]}?" if near else f"verbs: {', '.join(verbs)}"))


def _kinds() -> dict[str, Any]:
    """The options of each verb."""
    from . import options as o

    return {
        "info": o.Info, "poses": o.Poses, "reconstruct": o.Reconstruct, "mesh": o.MeshAgain, "render": o.Render, "eval": o.Eval,
        "view": o.View, "compare": o.Compare, "batch": o.Batch, "demo": o.Demo, "completion": o.Completion,
    }  # fmt: skip


def _parse(verb: str, args: list[str]) -> Any:
    import tyro

    from . import options as o

    kind = _kinds()[verb]
    known = ["--help", *o.flags(kind)]
    short = ["-h", *(["-o"] if "--out" in known else [])]
    for flag in (word.partition("=")[0] for word in args if re.match("-[-a-zA-Z]", word)):
        if flag not in [*known, *short]:
            near = difflib.get_close_matches(flag, known, n=1)
            raise UsageError(f"{verb} has no {flag}; " + (f"did you mean {near[0]}?" if near else f"see fastsurf {verb} --help"))
    try:
        parsed, rest = tyro.cli(
            kind, prog=f"fastsurf {verb}", args=args, return_unknown_args=True, config=(tyro.conf.HelptextFromCommentsOff,)
        )
    except SystemExit as e:
        if not e.code:  # --help
            print("\n".join(["examples:", *(f"  {example}" for example in o.EXAMPLES[verb])]))
        raise
    if rest:
        raise UsageError(f"{verb} can't do anything with {rest[0]!r}; see fastsurf {verb} --help")
    o.check_choices(parsed)
    return parsed


def info(o: "Info") -> int:
    """`fastsurf info SCENE`, or `--backends` instead of a scene."""
    if o.backends:
        return _backends(o)
    from .config import check, load_config
    from .options import read_as

    path = _wanted(o.scene, "info wants a SCENE: a folder or file with photographs and cameras")
    settings = load_config(o.config, o.set)
    check(settings)
    config = read_as(settings.scene, o.photographs)
    if o.sheet is not None:
        if o.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet {o.sheet}: want a file ending in .png")
        _check_file(o.sheet, o.force)
    from dataclasses import asdict

    from .doctor import Finding, examine
    from .errors import SceneError
    from .estimates import estimate, memory
    from .info import judged, report
    from .scene import load_scene

    try:
        scene = load_scene(path, config, o.photographs.format)
    except SceneError as e:
        if o.json:
            print(json.dumps({"path": str(path), **judged([Finding("broken", "scene", str(e))])}, indent=2, ensure_ascii=False))
        raise
    found, convention = examine(scene, os.cpu_count() or 1)
    needed = estimate(scene)
    facts = {**report(scene, [*found, *memory(needed)]), "convention": convention, "presets": [asdict(e) for e in needed]}
    if o.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        from .ui.report import report_lines

        print("\n".join(report_lines(facts, color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))))
    if o.sheet is not None:
        from .files import png
        from .sheet import draw_sheet

        _write_bytes(o.sheet, png(draw_sheet(scene)))
    return 0 if facts["usable"] else 3


def _backends(o: "Info") -> int:
    """`fastsurf info --backends`: in the order in which auto tries them."""
    if o.scene is not None:
        raise UsageError("info looks at a SCENE or at --backends: give one of them")
    from .backends import choose_backend, survey

    taken, found = choose_backend().name, survey()
    if o.json:
        print(json.dumps([{"name": f.name, "usable": f.usable, "auto": f.name == taken, "detail": f.detail} for f in found], indent=2))
    else:
        for f in found:
            state = "auto takes it" if f.name == taken else "usable" if f.usable else "not here"
            print(f"{f.name:<11}{state:<15}{' '.join(f.detail.split())}")
    return 0


def poses(o: "Poses", kept: Kept) -> int:
    """`fastsurf poses PHOTOS`."""
    source = _wanted(o.source, "poses wants PHOTOS: a folder of photographs, or a video")
    out = _wanted(o.out, "poses wants -o DIR: a folder for the scene")
    if (o.seed or 0) < 0 or (o.threads or 0) < 0:
        raise UsageError(f"--seed and --threads want 0 or more, found {min(o.seed or 0, o.threads or 0)}")
    with _display(o.json, o.quiet, _name(source), ("read", "features", "matching", "mapping")) as display, \
            _json_lines(o.json, o.force, False) as lines:
        from .poses import find_poses

        hooks: list[Hook] = [kept, lines, display]
        found = find_poses(source, out, o.config, seed=o.seed or 0, threads=o.threads or 0, force=o.force, hooks=hooks)
    if not o.quiet:
        from .ui.plain import placed_lines

        then = shlex.join(["fastsurf", "reconstruct", str(out), "-o", "mesh.ply"])
        cameras = [(c["model"], c["params"][0], c["width"], c["height"]) for c in found.cameras]
        placed = (len(found.placed), len(found.placed) + len(found.left_out))
        _say(placed_lines(str(out), placed, found.points, found.error, found.track, cameras, found.seconds, then), _people(o.json))
    return 0


def reconstruct(o: "Reconstruct", interrupt: Interrupt, kept: Kept) -> int:
    """`fastsurf reconstruct SCENE`."""
    from .config import load_config
    from .options import configure

    path = _wanted(o.scene, "reconstruct wants a SCENE: a folder or file with photographs and cameras, photographs alone, or a video")
    name = _name(path)
    run = o.run or (o.out.with_suffix(".run") if o.out else Path("runs") / name)
    own = load_config(str(run / "config.toml")) if o.resume and (run / "config.toml").is_file() else None
    config = configure(o.settings, o.photographs, own)
    output = o.outputs.chosen
    if o.out is not None:
        _check_mesh_file(o.out, o.force or o.resume, output)
    elif o.outputs != type(o.outputs)():
        raise UsageError("--faces, --watertight, --texture, --points and --scale want -o FILE; RUN/mesh.ply stays as it is")
    if o.resume:
        kept.checkpoint = run / "checkpoint.safetensors"

    from .hooks import Control

    control = Control(interrupt.finish)
    with _display(o.json, o.quiet, name, ("read", "train", "mesh"), interrupt.requested, control) as display, \
            _json_lines(o.json, o.force or o.resume, o.resume) as lines, _tensorboard(run, o.tensorboard) as board:
        from .reconstruction import reconstruct as make

        result = make(
            path, config, run=run, out=o.out, output=output, go_on=o.resume, force=o.force, format=o.photographs.format,
            hooks=[interrupt.watch, kept, lines, board, display], should_stop=interrupt.requested, control=control,
            began=interrupt.began,
        )
    if not o.quiet:
        out = ["-o", str(o.out), *_again(o.outputs)] if o.out else []
        again = ["fastsurf", "reconstruct", str(path), *out, "--run", str(run), "--resume"]
        then = shlex.join(again if result.stopped else ["fastsurf", "render", str(run), "--views", "orbit"])
        _say(_closing(result.mesh_path, result.mesh, result.report, output, result.seconds, then, result.stopped), _people(o.json))
    return STOPPED if result.stopped else 0


def mesh(o: "MeshAgain", kept: Kept) -> int:
    """`fastsurf mesh RUN`."""
    run = _wanted(o.run, "mesh wants a RUN: the folder that a reconstruction left")
    out = _wanted(o.out, "mesh wants -o FILE: .ply, .obj, .glb or .stl")
    if o.resolution is not None and o.resolution < 8:
        raise UsageError(f"--resolution wants 8 or more, found {o.resolution}")
    files: dict[Path, float | None] = {out: None}
    if o.levels is not None:
        files = {out.with_stem(f"{out.stem}_{density:g}"): density for density in _densities(o.levels)}
    output = o.outputs.chosen
    for path in files:
        _check_mesh_file(path, o.force, output)
    for path, density in files.items():
        with _display(None, o.quiet, run.name, ("mesh",)) as display, _phase("mesh", display) as phase:
            from .runs import mesh_run

            made, report = mesh_run(run, path, resolution=o.resolution, closed=False if o.open else None, backend=o.backend or "auto",
                            hooks=[kept, display], density=density, appearance=o.appearance, output=output)  # fmt: skip
        if not o.quiet:
            words = ["render", str(run), "--views", "orbit"] if output.points else ["eval", str(run), "--mesh", str(path), "--gt", "MESH"]
            then = shlex.join(["fastsurf", *words])
            _say(_closing(path, made, report, output, phase.seconds, then, False), sys.stdout)
    return 0


def _densities(text: str) -> list[float]:
    try:
        densities = [float(word) for word in text.split(",")]
    except ValueError:
        densities = []
    if not densities or not all(0 < density < float("inf") for density in densities):
        raise UsageError(f"--levels wants densities above 0 with commas between them, such as 1,50,500; found {text!r}")
    return densities


def render(o: "Render", kept: Kept) -> int:
    """`fastsurf render RUN`."""
    run = _wanted(o.run, "render wants a RUN: the folder that a reconstruction left")
    if o.depth and (o.views == "orbit" or o.appearance is not None or o.renderer is not None):
        raise UsageError("--depth wants --views test or --views train, and goes without --appearance and --renderer")
    if o.scale is not None and not o.depth:
        raise UsageError("--scale is of --depth: other pictures have no units")
    out = o.out or run / (f"{o.views}_depth" if o.depth else f"{o.views}_as_{o.renderer.resolve().stem}" if o.renderer else o.views)
    backend, scale = o.backend or "auto", (o.scale or "1") if o.depth else None
    go_on = False
    if out.is_dir() and any(out.iterdir()) and not o.force:
        from .runs import begun

        go_on = begun(run, o.views, out, backend, appearance=o.appearance, renderer=o.renderer, depth_scale=scale).begun
        if not go_on:
            raise UsageError(f"{out} is not empty: --force writes into it, -o DIR takes another folder")
    with _display(o.json, o.quiet, run.name, ("render",)) as display, _json_lines(o.json, o.force or go_on, go_on) as lines:
        from .hooks import announce
        from .runs import depth_run, render_run

        hooks: list[Hook] = [kept, lines, display]
        with _phase("render", announce(hooks)):
            if scale is not None:
                written = depth_run(run, o.views, out, backend=backend, hooks=hooks, scale=scale)
            else:
                written = render_run(
                    run, o.views, out, backend=backend, hooks=hooks, appearance=o.appearance, renderer=o.renderer, animation=o.format
                )
    if not o.quiet:
        _say([f"{len(written)} files in {out}"], _people(o.json))
    return 0


def evaluate(o: "Eval") -> int:
    """`fastsurf eval RUN`."""
    run = _wanted(o.run, "eval wants a RUN: the folder that a reconstruction left")
    if o.json not in (None, "-"):
        _check_file(Path(str(o.json)), o.force)
    from .metrics import read_thresholds

    thresholds = read_thresholds(o.thresholds) if o.thresholds is not None else ()
    with _display(o.json, o.quiet, run.name, ("eval",)) as display, _phase("eval", display):
        from .runs import eval_run

        scores = eval_run(run, o.gt, o.mesh, backend=o.backend or "auto", hooks=[display], thresholds=thresholds,
                          fit=o.fit_appearance)  # fmt: skip
    if o.json:
        from .ui.jsonlines import finite

        _write_text(o.json, json.dumps(finite(scores), indent=2) + "\n")
    if not o.quiet:
        _say(_table(scores), _people(o.json))
    return 0


def view(o: "View") -> int:
    """`fastsurf view RUN`. Ctrl-C is how it ends."""
    run = _wanted(o.run, "view wants a RUN: the folder that a reconstruction makes")
    try:
        from .viewer import HOST, Viewer

        with Viewer(run, o.host or HOST, o.port) as viewer:
            _say([f"{run}  {viewer.url}  Ctrl-C ends it"], sys.stdout)
            viewer.follow()
    except KeyboardInterrupt:
        return 0


def compare(o: "Compare", kept: Kept) -> int:
    """`fastsurf compare SCENE`."""
    from .metrics import read_thresholds
    from .options import contenders

    path = _wanted(o.scene, "compare wants a SCENE: a folder or file with photographs and cameras")
    out = o.out or Path("compare") / _name(path)
    rows = contenders(o)
    thresholds = read_thresholds(o.thresholds) if o.thresholds is not None else ()
    kept.folder = out
    with _display(o.json, o.quiet, f"compare {_name(path)}", tuple(row.name for row in rows)) as display, \
            _json_lines(o.json, o.force, False) as lines:
        from .compare import compare as make

        found = make(path, rows, out, o.gt, o.photographs.format, thresholds, o.force, [lines, display])
    if not o.quiet:
        from .compare import summary

        report = [("table", out / "compare.md"), ("look", out / "compare.png")]
        _say([*summary(found), *(f"{what:<6} {file}" for what, file in report if file.is_file())], _people(o.json))
    return 1 if any(row.failed for row in found) else 0


def batch(o: "Batch", interrupt: Interrupt, kept: Kept) -> int:
    """`fastsurf batch SCENES`."""
    from .options import configure, read_shard, runner

    out = _wanted(o.out, "batch wants -o DIR: a folder for the meshes")
    config, shard = configure(o.settings, o.photographs), read_shard(o.shard)
    if not o.scenes:
        raise UsageError("batch wants SCENES: folders or files with photographs and cameras, photographs alone, or videos")
    make = runner(o)
    kept.folder = out
    with _display(o.json, o.quiet, "batch", (), interrupt.requested) as display, _json_lines(o.json, o.force, False) as lines:
        from .batch import batch as run

        interrupt.can_finish = True
        rows = run(
            o.scenes, out, config, run=make, shard=shard, format=o.photographs.format, force=o.force, hooks=[lines, display],
            should_stop=interrupt.requested,
        )  # fmt: skip
    if not o.quiet:
        from .batch import summary

        _say([*summary(rows), f"table  {out / 'summary.md'}"], _people(o.json))
    states = {row.state for row in rows}
    return STOPPED if states & {"stopped", "waiting"} else 1 if "failed" in states else 0


def demo(o: "Demo", interrupt: Interrupt, kept: Kept) -> int:
    """`fastsurf demo`."""
    from .options import configure

    out = o.out or Path("demo")
    if (out / "mesh.ply").exists() and not o.force:
        raise UsageError(f"{out} holds an earlier demo: --force makes it again, -o DIR takes another folder")
    config = configure(replace(o.settings, config=o.settings.config or "demo"))
    from .hooks import Control

    control, phases = Control(interrupt.finish), ("scene", "read", "train", "mesh", "score")
    with _display(o.json, o.quiet, "demo", phases, interrupt.requested, control) as display, \
            _json_lines(o.json, o.force, False) as lines:
        from .demo import demo as make

        scores = make(out, config, [interrupt.watch, kept, lines, display], interrupt.requested, control)
    if not o.quiet:
        _say([*_table(scores), f"mesh   {out / 'mesh.ply'}", f"look   {out / 'preview.png'}"], _people(o.json))
    return STOPPED if scores["stopped"] else 0


def completion(o: "Completion") -> int:
    """`fastsurf completion SHELL`."""
    from .completion import script

    shell = _wanted(o.shell, "completion wants a shell: bash, zsh or fish")
    print(script(shell, _kinds()), end="")
    return 0


def _explain(error: BaseException) -> int:
    """One line on stderr and the exit code; errors nobody raised on purpose go on as they are."""
    if isinstance(error, FastsurfError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):  # `fastsurf info SCENE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _fail(f"the disk is full{_at(error)}; what was saved before is whole: make room and go on with --resume", 1)
    if isinstance(error, OSError):
        return _fail(f"{error.strerror or error}{_at(error)}", 1)
    if isinstance(error, MemoryError):
        return _fail("out of memory; lower --resolution or --set scene.max_side=800", 1)
    raise error


def _at(error: OSError) -> str:
    return f" ({error.filename})" if error.filename is not None else ""


def _fail(text: str, code: int) -> int:
    from .ui.lasting import lasting

    print("fastsurf: " + " ".join(text.split()), file=lasting(sys.stderr), flush=True)
    return code


def _wanted(value: T | None, message: str) -> T:
    if value is None:
        raise UsageError(message)
    return value


def _name(scene: Path) -> str:
    """What to call a scene: its folder."""
    path = scene.resolve()
    return (path.parent if path.is_file() else path).name or "scene"


def _check_mesh_file(path: Path, force: bool, output: "Output") -> None:
    if path.suffix.lower() not in MESHES:
        raise UsageError(f"-o {path}: want a file ending in {', '.join(MESHES)}")
    output.check(path)
    from .output import companions

    for file in (path, *companions(path, bool(output.texture))):
        _check_file(file, force)


def _again(outputs: "Outputs") -> list[str]:
    """The flags that say the same."""
    given = {name: getattr(outputs, name) for name in ("faces", "texture", "points", "scale") if getattr(outputs, name) is not None}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [*words, *(["--watertight"] if outputs.watertight else [])]


def _check_file(path: Path, force: bool) -> None:
    """Before hours are spent: `path` can be written."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: want the name of a file")
    if path.is_file() and not force:
        raise UsageError(f"{path} exists: --force overwrites it")
    there = next(folder for folder in path.absolute().parents if folder.exists())  # the rest is made when there is something to write
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, "no permission to write", str(path))


def _people(json_to: str | None) -> TextIO:
    """Where words for people go: stdout, unless that carries JSON. The work goes on if nobody is there to read them any more."""
    from .ui.lasting import lasting

    return lasting(sys.stderr if json_to == "-" else sys.stdout)


@contextlib.contextmanager
def _display(
    json_to: str | None, quiet: bool, title: str, phases: tuple[str, ...], stopping: Callable[[], bool] = lambda: False,
    control: "Control | None" = None,
) -> "Iterator[Hook]":
    from .ui import open_display

    with open_display(_people(json_to), title, phases, stopping, quiet, control) as display:
        yield display


@contextlib.contextmanager
def _json_lines(to: str | None, force: bool, append: bool) -> "Iterator[Hook]":
    """A hook that writes JSON lines to a file, to stdout ('-'), or nowhere."""
    if to is None:
        yield lambda event: None
        return
    if to != "-":
        _check_file(Path(to), force)
    from .ui.jsonlines import JsonLines
    from .ui.lasting import lasting

    lines = JsonLines(lasting(sys.stdout) if to == "-" else Path(to), append)
    try:
        yield lines
    finally:
        lines.close()
        if lines.trouble:
            _say([f"note   {lines.trouble}"], lasting(sys.stderr))


@contextlib.contextmanager
def _tensorboard(run: Path, wanted: bool) -> "Iterator[Hook]":
    """A hook that writes for TensorBoard, or nothing."""
    if not wanted:
        yield lambda event: None
        return
    from .ui.tensorboard import TensorBoard

    try:
        board = TensorBoard(run / "tensorboard")
    except ImportError:
        raise UsageError("--tensorboard needs TensorBoard: pip install 'fastsurf[tensorboard]'") from None
    try:
        yield board
    finally:
        board.close()


def _phase(name: str, hook: "Hook") -> "Phases":
    from .hooks import Phases

    return Phases(hook)(name)


def _closing(
    path: Path, mesh: "Mesh", report: "Report", output: "Output", seconds: Mapping[str, float], then: str, stopped: bool
) -> list[str]:
    from .ui.plain import closing_lines, points_lines

    size = (mesh.vertices.max(0) - mesh.vertices.min(0)).tolist()
    units = "in the units of the input" if output.scale == "1" else f"at --scale {output.scale}"
    if output.points:
        return points_lines(str(path), output.points, size, seconds, then, stopped, units)
    return closing_lines(str(path), len(mesh.faces), size, report.line(), seconds, then, stopped, units)


def _table(scores: Mapping[str, Any]) -> list[str]:
    """One line a score; nested ones (each view's, the mesh's) are indented under their name, lists have a line an entry."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, Mapping):
            lines += [name, *(f"  {line}" for line in _table(value))] if value else []
        elif isinstance(value, list):
            lines.append(f"{name:<19}" + "".join(f"{key:>11}" for key in value[0]))
            lines += [" " * 19 + "".join(f"{number:11.4g}" for number in entry.values()) for entry in value]
        elif value is not None:
            lines.append(f"{name:<20} {value:.4g}" if isinstance(value, float) else f"{name:<20} {value}")
    return lines


def _write_text(to: str, text: str) -> None:
    if to == "-":
        print(text, end="")
    else:
        _write_bytes(Path(to), text.encode())


def _write_bytes(path: Path, data: bytes) -> None:
    from .files import write_whole

    write_whole(path, data)


def _say(lines: Sequence[str], stream: TextIO) -> None:
    for line in lines:
        print(line, file=stream)
    stream.flush()
