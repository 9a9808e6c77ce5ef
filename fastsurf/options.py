"""What can be typed after each verb: a dataclass a verb, a field an option. tyro makes flags and help of them.

Only cli.py imports this, and only once a verb is known. `None` means that a flag was not given, so that it overrides nothing.
"""

import difflib
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

from .config import CHOICES, Config, PosesConfig, SceneConfig, check, load_config
from .errors import UsageError

if TYPE_CHECKING:
    from .batch import Runner
    from .compare import Contender
    from .output import Output

T = TypeVar("T")

BareArgument = Annotated[Path | None, Positional, arg(metavar="PHOTOS|VIDEO", help_behavior_hint="")]
SceneArgument = Annotated[Path | None, Positional, arg(metavar="SCENE", help_behavior_hint="")]
ScenesArgument = Annotated[tuple[Path, ...], Positional, arg(metavar="SCENES", help_behavior_hint="")]
RunArgument = Annotated[Path | None, Positional, arg(metavar="RUN", help_behavior_hint="")]
ShellArgument = Annotated[str | None, Positional, arg(metavar="bash|zsh|fish", help_behavior_hint="")]
MeshFile = Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")]
OutFolder = Annotated[Path | None, arg(aliases=["-o"], metavar="DIR", help_behavior_hint="")]
JsonFile = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, arg(metavar="M", help_behavior_hint="")]
Flag = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]
BACKENDS, PRECISIONS, METHODS = CHOICES["backend"], CHOICES["precision"], CHOICES["method"]
ConfigName = Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="")]
MethodName = Annotated[str | None, arg(metavar="|".join(METHODS), help_behavior_hint="")]
COLMAP = "colmap"  # among the methods to compare: a mesh that is given
FORMATS = ("transforms", "colmap", "idr", "blendedmvs", "middlebury", "strecha", "llff")  # as formats/ has them, which is slow to import
FormatName = Annotated[str | None, arg(metavar="|".join(FORMATS), help_behavior_hint="")]
BackendName = Annotated[str | None, arg(metavar="|".join(BACKENDS), help_behavior_hint="")]
PrecisionName = Annotated[str | None, arg(metavar="|".join(PRECISIONS), help_behavior_hint="")]
Thresholds = Annotated[str | None, arg(metavar="0.5%,1%,...", help_behavior_hint="")]
Sets = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="SECTION.KEY=VALUE", help_behavior_hint="(repeatable)")]


@dataclass(frozen=True)
class Photographs:
    """How the photographs are read."""

    format: FormatName = None
    """read the folder as this"""
    masks: Annotated[str | None, arg(metavar="auto|ignore|DIR", help_behavior_hint="")] = None
    """use the masks found, none, or those in a folder"""
    holdout: Count = None
    """keep every N-th view out of training and score it"""


@dataclass(frozen=True)
class Settings:
    """Defaults, then --method, then --config, then --set, then flags: the later wins."""

    method: MethodName = None
    """unisurf if not given: what the photographs are explained by (docs/methods.md)"""
    config: ConfigName = None
    """a preset (quick, object, scene, demo, unisurf_paper) or your own file"""
    set: Sets = ()
    """any one setting, such as scene.radius=1.2"""
    minutes: Number = None
    """be done in M minutes, from photographs to mesh; 3, on a GPU 0.5, where nothing says otherwise"""
    steps: Count = None
    """train for N steps instead"""
    resolution: Count = None
    """cells of the mesh along the scene box; 512 where nothing says otherwise"""
    seed: Count = None
    """of everything random; 0 where nothing says otherwise"""
    backend: BackendName = None
    """what computes: fastsurf info --backends shows what runs here"""
    precision: PrecisionName = None
    """of matrix products on a GPU; exact: float32; fast: half precision inputs"""
    threads: Count = None
    """CPU threads; 0 takes all, and so it is where nothing says otherwise"""


@dataclass(frozen=True)
class Outputs:
    """What is made of the surface. Each wants -o FILE; RUN/mesh.ply stays as it is."""

    faces: Count = None
    """simplify to about N faces"""
    watertight: Flag = False
    """a solid for certain (checked with manifold3d), or an error"""
    texture: Annotated[int | None, arg(metavar="SIDE", help_behavior_hint="")] = None
    """bake a SIDE x SIDE picture from the photographs, such as 2048: .glb, or .obj with .mtl and .png"""
    points: Count = None
    """N points with normals and colours instead of a mesh: .ply"""
    scale: Annotated[str | None, arg(metavar="S|A,B=D", help_behavior_hint="")] = None
    """multiply coordinates by S, or so that the cameras of photographs A and B are D apart"""

    @property
    def chosen(self) -> "Output":
        """As output.py has it.

        Raises:
            UsageError: a 0 that makes no sense.
        """
        from .output import Output

        for name in ("faces", "texture", "points"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name} wants 1 or more, found {getattr(self, name)}")
        return _given(Output(watertight=self.watertight), faces=self.faces, texture=self.texture, points=self.points, scale=self.scale)


@dataclass(frozen=True)
class Info:
    """What was found in a folder of photographs and cameras, and whether it can work."""

    scene: SceneArgument = None
    """folder or file with photographs and cameras"""
    photographs: Annotated[Photographs, OmitArgPrefixes, arg(name="")] = field(default_factory=Photographs)
    config: ConfigName = None
    """a preset (quick, object, scene, demo, unisurf_paper) or your own file"""
    set: Sets = ()
    """any one setting, such as scene.radius=1.2"""
    backends: Flag = False
    """what can compute on this machine, and why the rest can't; no SCENE"""
    json: Flag = False
    """print it as JSON"""
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """draw the photographs with their masks and the scene box, and where the cameras stand"""
    force: Flag = False
    """overwrite FILE.png"""


@dataclass(frozen=True)
class Poses:
    """Cameras for photographs that have none, or for a video: a COLMAP scene, for reconstruct and for other programs.

    Stopped with Ctrl-C, the same command goes on where it was. `reconstruct` does all this by itself where it finds no cameras.
    """

    source: BareArgument = None
    """folder of photographs (jpg, png, tif, webp, heic), or a video"""
    out: OutFolder = None
    """folder for the scene, has to be given: the photographs (hard links where possible), COLMAP's database and model"""
    pairs: Annotated[str | None, arg(metavar="auto|all|sequence", help_behavior_hint="")] = None
    """which photographs are compared; auto: all of up to 80, else those that look alike; of a video: sequence"""
    cameras: Annotated[str | None, arg(metavar="auto|one|folder|each", help_behavior_hint="")] = None
    """which photographs share a camera; auto: those of the same size, make, model and focal length"""
    masks: Annotated[str | None, arg(metavar="auto|ignore|DIR", help_behavior_hint="")] = None
    """where features are looked for; auto: inside the masks that are found, those of a thing on a turntable for instance"""
    side: Count = None
    """features are looked for in photographs reduced to N pixels (1000)"""
    features: Count = None
    """features of a photograph, at most (2048)"""
    frames: Count = None
    """frames of a video, at most (120); the sharpest are taken"""
    least: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """share of the photographs that must find their place (0.6)"""
    seed: Count = None
    """of everything random; 0 if not given"""
    threads: Count = None
    """CPU threads; 0 takes all, and so it is where nothing says otherwise"""
    force: Flag = False
    """replace a scene that was made there from other photographs or with other options"""
    json: JsonFile = None
    """write progress as JSON lines, - for stdout"""
    quiet: Flag = False
    """show nothing but errors"""

    @property
    def config(self) -> PosesConfig:
        """The defaults with what was given on top."""
        check_masks(self.masks)
        return _given(
            PosesConfig(), pairs=self.pairs, cameras=self.cameras, masks=self.masks, max_side=self.side, features=self.features,
            frames=self.frames, least=self.least,
        )  # fmt: skip


@dataclass(frozen=True)
class Reconstruct:
    """Photographs in, a coloured surface mesh out, in the coordinates of their cameras, which are found first where there are none.

    Settings come from the defaults, then --method, then --config, then --set, then flags: the later wins. With --resume, the
    run's own settings take the place of the defaults.

    Ctrl-C once ends the training early and still writes the mesh; twice stops at once and keeps the last checkpoint.
    """

    scene: SceneArgument = None
    """folder or file with photographs and cameras; or photographs alone, or a video"""
    out: MeshFile = None
    """the mesh: .ply, .obj, .glb or .stl; if not given only RUN/mesh.ply, which is always there"""
    run: Folder = None
    """folder for checkpoint, log and preview; if not given NAME.run beside -o NAME.ply, without -o runs/SCENE"""
    resume: Flag = False
    """go on with the run in that folder"""
    force: Flag = False
    """overwrite a mesh or a run that exists"""
    json: JsonFile = None
    """write progress as JSON lines, - for stdout"""
    tensorboard: Flag = False
    """write curves and previews into RUN/tensorboard, too"""
    quiet: Flag = False
    """show nothing but errors"""
    outputs: Annotated[Outputs, OmitArgPrefixes, arg(name="")] = field(default_factory=Outputs)
    photographs: Annotated[Photographs, OmitArgPrefixes, arg(name="")] = field(default_factory=Photographs)
    settings: Annotated[Settings, OmitArgPrefixes, arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True)
class MeshAgain:
    """The mesh again, from a finished or running run; of a running one as its last checkpoint has it."""

    run: RunArgument = None
    """run folder"""
    out: MeshFile = None
    """the mesh: .ply, .obj, .glb or .stl; has to be given"""
    resolution: Count = None
    """cells along the scene box; the run's own if not given"""
    levels: Annotated[str | None, arg(metavar="S,S,...", help_behavior_hint="")] = None
    """of a NeRF: a mesh at each of these densities per scene unit, FILE_S.ply and so on"""
    open: Flag = False
    """leave the mesh open where the scene box cuts it"""
    appearance: Annotated[str | None, arg(metavar="PHOTO|mean", help_behavior_hint="")] = None
    """colours as when that photograph was taken, of a run of --method wild; mean if not given"""
    backend: BackendName = None
    """what computes"""
    force: Flag = False
    """overwrite a mesh that exists"""
    quiet: Flag = False
    """show nothing but errors"""
    outputs: Annotated[Outputs, OmitArgPrefixes, arg(name="")] = field(default_factory=Outputs)


@dataclass(frozen=True)
class Render:
    """Colour, depth and normal pictures of a run's views, or of an orbit round it, also as an animation; or depth for other programs.

    Stopped with Ctrl-C, the same command goes on where it was.
    """

    run: RunArgument = None
    """run folder"""
    views: Annotated[Literal["test", "train", "orbit"], arg(metavar="test|train|orbit", help_behavior_hint="")] = "orbit"
    """which photographs' views, or a circle round the object; orbit if not given"""
    out: OutFolder = None
    """folder for the pictures; if not given RUN/VIEWS, with --depth RUN/VIEWS_depth"""
    appearance: Annotated[str | None, arg(metavar="PHOTO|mean", help_behavior_hint="")] = None
    """all pictures as when that photograph was taken, of a run of --method wild"""
    format: Annotated[Literal["webp", "gif", "mp4"], arg(metavar="webp|gif|mp4", help_behavior_hint="")] = "webp"
    """of the orbit's animation; webp if not given"""
    depth: Flag = False
    """only depth along the camera's axis, as .npy and 16-bit .png, with the cameras; of test or train views"""
    scale: Annotated[str | None, arg(metavar="S|A,B=D", help_behavior_hint="")] = None
    """with --depth: multiply by S, or so that the cameras of photographs A and B are D apart"""
    renderer: Folder = None
    """another run, whose appearance is put on this one's geometry"""
    backend: BackendName = None
    """what computes"""
    force: Flag = False
    """write into a folder that isn't empty"""
    json: JsonFile = None
    """write progress as JSON lines, - for stdout"""
    quiet: Flag = False
    """show nothing but errors"""


@dataclass(frozen=True)
class Eval:
    """PSNR and SSIM on held-out views; with a ground truth also Chamfer distance, F-score and normal error."""

    run: RunArgument = None
    """run folder"""
    gt: Annotated[Path | None, arg(metavar="MESH|POINTS|DIR", help_behavior_hint="")] = None
    """true surface: a mesh, points (.ply, .npz), or the folder of a scene with gt/ in it"""
    mesh: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """the mesh to score; RUN/mesh.ply if not given"""
    thresholds: Thresholds = None
    """also precision, recall and F1 at these: percent of the diagonal, or plain numbers in the input's units"""
    fit_appearance: Flag = False
    """learn how each held-out view was taken from its left half, and score the right one; of a run of --method wild"""
    backend: BackendName = None
    """what computes"""
    json: JsonFile = None
    """write the scores as JSON, - for stdout"""
    force: Flag = False
    """overwrite a file of scores that exists"""
    quiet: Flag = False
    """show nothing but errors"""


@dataclass(frozen=True)
class View:
    """A run in a browser, finished or still training: cameras, mesh, photographs beside and over it, the numbers. Ctrl-C ends it."""

    run: RunArgument = None
    """run folder; nothing in it is changed"""
    host: Text = None
    """address to serve on; this machine alone if not given, 0.0.0.0: everybody who can reach it, without a password"""
    port: Count = None
    """the first free one from 8080 on if not given"""


@dataclass(frozen=True)
class Compare:
    """Several methods on the same photographs, each for the same time, one after the other: one table and one picture.

    DIR/compare.md, compare.json and compare.png hold what came of it, DIR/METHOD/ everything else. The same command again goes on with
    what is not finished.
    """

    scene: SceneArgument = None
    """folder or file with photographs and cameras"""
    methods: Annotated[str | None, arg(metavar="A,B,...", help_behavior_hint="")] = None
    """methods of reconstruct, all of them if not given; colmap stands for the mesh of --mesh"""
    out: OutFolder = None
    """folder for everything; compare/SCENE if not given"""
    gt: Annotated[Path | None, arg(metavar="MESH|POINTS|DIR", help_behavior_hint="")] = None
    """true surface, as of eval; if not given gt/ beside the photographs, where there is one"""
    mesh: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """a mesh of the same scene by another program, dense COLMAP's or OpenMVS', scored beside ours"""
    thresholds: Thresholds = None
    """also precision, recall and F1 at these: percent of the diagonal, or plain numbers in the input's units"""
    force: Flag = False
    """replace runs with other settings in DIR"""
    json: JsonFile = None
    """write progress as JSON lines, - for stdout"""
    quiet: Flag = False
    """show nothing but errors"""
    photographs: Annotated[Photographs, OmitArgPrefixes, arg(name="")] = field(default_factory=Photographs)
    settings: Annotated[Settings, OmitArgPrefixes, arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True)
class Batch:
    """Many scenes, each reconstructed in a process of its own: DIR/NAME.ply and DIR/NAME.run, DIR/summary.md and summary.jsonl.

    The same command again skips what is finished, goes on with what is not, and makes anew what was made with other settings or has
    changed. Ctrl-C once ends all trainings early and still writes their meshes; twice stops at once and keeps the checkpoints.
    """

    scenes: ScenesArgument = ()
    """folders or files with photographs and cameras; or photographs alone, or videos"""
    out: OutFolder = None
    """folder for everything; has to be given"""
    jobs: Count = None
    """scenes at a time; one for each of --gpus, else 1"""
    gpus: Annotated[str | None, arg(metavar="0,1,...", help_behavior_hint="")] = None
    """GPUs to hand out, one to a scene"""
    shard: Annotated[str | None, arg(metavar="I/N", help_behavior_hint="")] = None
    """only the I-th of N parts of the scenes, the first is 1: for arrays of jobs on a cluster"""
    ray: Annotated[str | None, arg(metavar="local|auto|HOST:PORT", help_behavior_hint="")] = None
    """on a Ray cluster: one started here, the one that this machine belongs to, or another"""
    force: Flag = False
    """replace what is there from elsewhere, and start unfinished scenes anew"""
    json: JsonFile = None
    """write progress as JSON lines, - for stdout"""
    quiet: Flag = False
    """show nothing but errors"""
    photographs: Annotated[Photographs, OmitArgPrefixes, arg(name="")] = field(default_factory=Photographs)
    settings: Annotated[Settings, OmitArgPrefixes, arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True)
class Demo:
    """Make photographs of a solid of known shape, reconstruct it and score the mesh against the truth.

    Settings start from the preset demo, unless --config names another. Ctrl-C once ends the training early; the mesh is still made and
    scored.
    """

    out: OutFolder = None
    """folder for everything; ./demo if not given"""
    force: Flag = False
    """overwrite an earlier demo"""
    json: JsonFile = None
    """write progress as JSON lines, - for stdout"""
    quiet: Flag = False
    """show nothing but errors"""
    settings: Annotated[Settings, OmitArgPrefixes, arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True)
class Completion:
    """A script that completes verbs, flags and their values in a shell."""

    shell: ShellArgument = None
    """which shell"""


EXAMPLES = {
    "info": ("fastsurf info photos --sheet sheet.png", "fastsurf info --backends"),
    "poses": ("fastsurf poses photos -o scene", "fastsurf poses walk.mp4 -o scene --frames 80"),
    "reconstruct": (
        "fastsurf reconstruct photos -o mesh.ply",
        "fastsurf reconstruct photos -o mesh.ply --config scene --minutes 5",
        "fastsurf reconstruct photos -o mesh.ply --resume",
    ),
    "mesh": ("fastsurf mesh mesh.run -o fine.ply --resolution 1024", "fastsurf mesh mesh.run -o small.glb --faces 20000 --texture 2048"),
    "render": ("fastsurf render mesh.run --views orbit --format mp4 -o turn", "fastsurf render mesh.run --views train --depth"),
    "eval": ("fastsurf eval mesh.run --gt scan.ply --thresholds 0.5%,1%",),
    "view": ("fastsurf view mesh.run",),
    "compare": ("fastsurf compare photos --methods unisurf,nerf --minutes 1",),
    "batch": ("fastsurf batch scans/* -o meshes --minutes 3", "fastsurf batch scans/* -o meshes --gpus 0,1"),
    "demo": ("fastsurf demo -o demo",),
    "completion": (
        "source <(fastsurf completion bash)",
        "fastsurf completion zsh > ~/.zfunc/_fastsurf",
        "fastsurf completion fish > ~/.config/fish/completions/fastsurf.fish",
    ),
}  # at the end of each verb's --help


def flags(kind: type) -> list[str]:
    """Every --flag of a verb."""
    nested = {"photographs": Photographs, "settings": Settings, "outputs": Outputs}
    named = [f for f in fields(kind) if f.type not in (BareArgument, SceneArgument, ScenesArgument, RunArgument, ShellArgument)]
    return [flag for f in named for flag in (flags(nested[f.name]) if f.name in nested else [f"--{f.name.replace('_', '-')}"])]


def check_choices(chosen: object) -> None:
    """Refuse words that are none of a flag's; the parser's own answer would fill the screen.

    Raises:
        UsageError: an unknown method, backend or precision.
    """
    chosen = getattr(chosen, "settings", chosen)
    for name, choices in (("method", METHODS), ("backend", BACKENDS), ("precision", PRECISIONS)):
        value = getattr(chosen, name, None)
        if value is not None and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            raise UsageError(f"--{name} wants {', '.join(choices)}; found {value!r}" + (f": did you mean {near[0]}?" if near else ""))


def contenders(o: Compare) -> "list[Contender]":
    """What --methods and --mesh ask for, each with its settings; every eighth view is held out where nothing else is said.

    Raises:
        UsageError: an unknown method, one named twice, no such mesh.
    """
    from .compare import HOLDOUT, Contender

    if o.settings.method is not None:
        raise UsageError(f"compare runs several methods: --methods {o.settings.method}")
    names = [name.strip() for name in o.methods.split(",")] if o.methods is not None else list(METHODS)
    for name in names:
        if name not in (*METHODS, COLMAP):
            near = difflib.get_close_matches(name, (*METHODS, COLMAP), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join((*METHODS, COLMAP))}"
            raise UsageError(f"--methods: unknown method {name!r}; {hint}")
        if names.count(name) > 1:
            raise UsageError(f"--methods names {name} twice")
    if o.mesh is not None and not o.mesh.is_file():
        raise UsageError(f"--mesh {o.mesh}: no such file")
    found = []
    for name in names:
        if name == COLMAP:
            found.append(Contender(name, mesh=o.mesh))
            continue
        config = replace(configure(replace(o.settings, method=name), o.photographs), method=name)
        if o.photographs.holdout is None and not config.scene.holdout:
            config = replace(config, scene=replace(config.scene, holdout=HOLDOUT))
        found.append(Contender(name, config))
    if o.mesh is not None and COLMAP not in names:
        found.append(Contender(o.mesh.name, mesh=o.mesh))
    return found


def runner(o: Batch) -> "Runner":
    """Who makes the scenes: this machine, or a cluster.

    Raises:
        UsageError: numbers that make no sense, GPUs with --ray, or Ray isn't installed.
    """
    from .batch import here

    threads = o.settings.threads or 0
    gpus = tuple(word.strip() for word in o.gpus.split(",")) if o.gpus is not None else ()
    if o.jobs is not None and o.jobs < 1:
        raise UsageError(f"--jobs wants 1 or more, found {o.jobs}")
    if not all(gpus) or len(set(gpus)) < len(gpus):
        raise UsageError(f"--gpus wants each GPU once, with commas between them, such as 0,1; found {o.gpus!r}")
    if o.ray is None:
        return here(o.jobs or len(gpus) or 1, gpus, threads)
    if gpus:
        raise UsageError("--gpus is for this machine alone: with --ray the cluster hands out its GPUs")
    from .cluster import on_ray

    return on_ray(o.ray, o.jobs or 1, threads)


def read_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of I/N; all of it if not given.

    Raises:
        UsageError: it is no such thing.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard wants I/N with I from 1 to N, such as 2/8; found {text!r}")
    return int(match[1]), int(match[2])


def configure(settings: Settings, photographs: Photographs | None = None, start: Config | None = None) -> Config:
    """Defaults < --method < --config < --set < flags; in place of the defaults `start`, the settings of a run that goes on.

    Raises:
        UsageError: a number that makes no sense, a run that was to go on with another method. ConfigError: see load_config and check.
    """
    if start is not None and settings.method not in (None, start.method):
        raise UsageError(f"the run was made with the method {start.method}, now it is {settings.method}: leave --method out")
    config = load_config(settings.config, settings.set, settings.method, start)
    if settings.minutes is not None and settings.steps is not None:
        raise UsageError("--minutes and --steps are one dial: give one of them")
    if settings.minutes is not None and not settings.minutes > 0:
        raise UsageError(f"--minutes wants more than 0, found {settings.minutes:g}")
    for name, number, least in (("steps", settings.steps, 1), ("resolution", settings.resolution, 8),
                                ("threads", settings.threads, 0), ("seed", settings.seed, 0)):
        if number is not None and number < least:
            raise UsageError(f"--{name} wants {least} or more, found {number}")
    train = _given(config.train, seed=settings.seed)
    if settings.minutes is not None or settings.steps is not None:
        train = replace(train, minutes=settings.minutes, steps=settings.steps)
    config = replace(
        config,
        scene=read_as(config.scene, photographs or Photographs()),
        train=train,
        mesh=_given(config.mesh, resolution=settings.resolution),
        backend=settings.backend or config.backend,
        precision=settings.precision or config.precision,
        threads=config.threads if settings.threads is None else settings.threads,
    )
    check(config)
    return config


def read_as(scene: SceneConfig, flags: Photographs) -> SceneConfig:
    """`scene` with the flags about photographs on top.

    Raises:
        UsageError: a flag that makes no sense.
    """
    if flags.holdout is not None and (flags.holdout < 0 or flags.holdout == 1):
        raise UsageError(f"--holdout wants 0 (nothing), or 2 or more (every N-th view), found {flags.holdout}")
    check_masks(flags.masks)
    return _given(scene, masks=flags.masks, holdout=flags.holdout)


def check_masks(masks: str | None) -> None:
    """Refuse what --masks can't mean.

    Raises:
        UsageError: no folder of that name.
    """
    if masks not in (None, "auto", "ignore") and not Path(str(masks)).is_dir():
        raise UsageError(f"--masks wants auto, ignore or a folder of masks, found {masks!r}")


def _given(section: T, **flags: object) -> T:
    return replace(section, **{name: value for name, value in flags.items() if value is not None})  # type: ignore[type-var]
