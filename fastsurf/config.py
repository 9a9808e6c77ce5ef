"""Every option, its default and a word on what it does.

A TOML file (`configs/*.toml`, or the user's) holds only what differs; `--set section.key=value` goes on top. Lengths are in scene
units: the scene box is [-1, 1]^3. Schedules run on `progress` in [0, 1], so that `--minutes` and `--steps` are one dial.
"""

import dataclasses
import difflib
import functools
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .guard import MOST_TEXT, read_text

INSTALLED, CHECKOUT = Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"
PRESETS = INSTALLED if INSTALLED.is_dir() else CHECKOUT

T = TypeVar("T")


@dataclass(frozen=True)
class SceneConfig:
    """What is reconstructed, and from which pixels."""

    center: tuple[float, float, float] | None = None  # of the scene box, in the input's own frame; None: found
    radius: float | None = None  # half the edge of the scene box, in the input's own units; None: found
    convention: str = "format"  # of the poses: format (as it has them) | auto (as the photographs say) | opencv | opengl-w2c | ...
    check: str = "refuse"  # a scene with a finding that is broken: refuse | ignore
    masks: str = "auto"  # auto: those found, or made where surroundings are black | ignore | a folder of masks
    invert_masks: bool = False  # what is dark in them is the object
    ignore: str = "auto"  # pixels not to learn from, bright in pictures: auto (ignore/NAME.png, dynamic_mask_NAME.png) | none | a folder
    outside: bool = False  # photographs may lie outside the scene's folder, where its files name them (docs/safety.md)
    background: str = "auto"  # auto: random behind masks, else model | random | white | black | model
    points: str = "auto"  # without masks: auto (sparse points that the scene brings, else made of the photographs) | ignore
    holdout: int = 0  # every n-th view is kept out of training and scored; 0: only what the scene itself holds out
    max_side: int = 1600  # photographs larger than this are reduced on loading, pixels


@dataclass(frozen=True)
class FieldConfig:
    """Occupancy field: multiresolution hash encoding and a small MLP."""

    levels: int = 12  # of the hash grid, each finer than the one before
    encoding: str = "hash"  # hash; idr also has frequency | none: an MLP of position, with its sines and cosines or without
    log2_entries: int = 18  # largest table of one level
    base_resolution: int = 16  # cells along the box at the coarsest level
    finest_resolution: int = 0  # cells along the box at the finest level; 0: two per pixel on the object, fewer of few views without masks
    width: int = 64  # of the MLP's one hidden layer
    first_levels: int = 6  # coarse-to-fine: levels in use at the start
    grow_until: float = 0.4  # progress at which every level is in use
    prior_radius: float = 0.5  # sphere that the untrained field shows
    sharpness: float = 10.0  # logit = sharpness * (g + prior), the least value; nerf: log density = sharpness * g
    sharpness_times_half_width: float = 5.0  # sharpness follows the interval: max(sharpness, this / half width)
    sharpness_max: float = 400.0  # and no more than this
    density_level: float = 10.0  # nerf: density of what is meshed, per scene unit (of 5, 10, 20, 50 the best on Nefertiti)


@dataclass(frozen=True)
class ColorConfig:
    """Colour head c(x, n, h, d)."""

    width: int = 64  # of its hidden layers
    hidden: int = 2  # layers
    inputs: str = "x,n,h,d"  # which of position, normal, feature, direction it sees
    appearance: int = 0  # numbers learned for each photograph that say how it was taken; colours see them, geometry doesn't


@dataclass(frozen=True)
class GridConfig:
    """Occupancy grid that skips empty space."""

    resolution: int = 96  # cells along the box
    update_every: int = 16  # steps
    decay: float = 0.7  # of the running maximum, at each update
    error_budget: float = 1.0 / 255.0  # opacity that all culled samples of a ray may lose together
    steps: int = 256  # marching steps along the box diagonal
    secant_steps: int = 8  # that narrow a crossing down


@dataclass(frozen=True)
class SamplingConfig:
    """Where a ray is sampled: UNISURF's shrinking interval, and a few samples before it."""

    interval: int = 16  # samples in the interval
    front: int = 8  # samples between the box and the interval
    delta_max: float = 0.5  # half-width of the interval at the start
    delta_min: float = 0.015  # and at the end
    delta_until: float = 0.9  # progress at which delta_min is reached


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; 0 switches one off."""

    color: float = 1.0  # of rendered and photographed pixels
    huber: float = 0.0  # colours off by less than this are blamed in proportion (Huber's loss); 0: L1
    outlier: float | None = None  # rays off by this pull a quarter as much as others; 0: all alike; none: 0.15 with masks, else 0
    plain_colors: float = 0.8  # progress from which colours, but not the surface, learn from outliers as well; above 1: never
    transient: float = 0.0  # patches off by so many times the median, for their contrast, pull half as much: passers-by (1.5); 0: all alike
    mask: float = 0.1  # binary cross-entropy of the ray's opacity, where masks exist
    points: float | None = None  # cross-entropy at sparse points and on the way to them; none: 0.02, of n < 36 photographs 0.72 / n
    points_until: float = 0.6  # progress at which that has faded to nothing, half-way there it begins to: points are off by a pixel
    smooth: float | None = None  # difference of normals at the surface and close to it; none: 0.005 with masks, else 0.02
    smooth_first: float | None = None  # weight up to 30 % of a run, smooth from 60 % on; none: smooth, with neither masks nor points 0.005
    disputed: float | None = None  # up to so many times smooth is added where photographs disagree; none: 16 with masks and outlier, else 0
    smooth_distance: float = 0.01  # how close, scene units
    eikonal: float = 0.0  # squared deviation of a distance field's slope from 1; of the method idr


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    minutes: float | None = None  # from photographs to mesh; if neither this nor steps is set 3, on a GPU 0.5
    steps: int | None = None  # instead of minutes, where set
    rays: int = 0  # a step; 0: 1024, in runs of half a minute and less 512, on a GPU 4096
    foreground: float = 0.75  # share of rays through masks, where masks exist
    rate_grid: float = 1e-2  # learning rate of the hash grids' tables, and of photographs' embeddings
    rate_mlp: float = 1e-3  # and of all matrices
    warmup: int = 30  # steps
    cameras: bool = False  # learn corrections of the poses too; of the method idr
    rate_cameras: float = 1e-3  # of quaternions and, in scene units, translations
    final_rate: float = 0.2  # of the initial learning rates
    skip_limit: int = 20  # steps in a row, or 1 % of all if that is more, whose numbers may not be finite; then the run stops
    seed: int = 0  # of everything random
    save_every: float = 60.0  # seconds between checkpoints
    preview_every: float = 8.0  # seconds between previews


@dataclass(frozen=True)
class MeshConfig:
    """The mesh at the end."""

    resolution: int = 0  # marching-cubes cells along the scene box, 8 or more; 0: 512, on a CPU in runs of half a minute and less 256
    closed: bool = True  # close the mesh where the scene box cuts it
    min_component: float = 0.01  # components with less of the largest's area are dropped; with masks only if shorter than 5 times this, too
    fill_cavities: bool = True  # drop inner surfaces that no camera can see
    shown_by: int | None = None  # photographs that must show a face; none: 1 to 4 by how many have it in the frame, if open without masks
    faces: int = 0  # simplify to about this many; 0: keep all
    colors: bool = True  # at the vertices


@dataclass(frozen=True)
class PosesConfig:
    """Cameras of bare photographs (poses.py)."""

    pairs: str = "auto"  # which are compared: auto (all of up to 80, else those that look alike) | all | sequence (video, a walk)
    cameras: str = "auto"  # which share one: auto (same size, make, model and focal length) | one | folder | each
    masks: str = "auto"  # features inside masks alone: auto (those found) | ignore | a folder of masks
    max_side: int = 1000  # pixels; features are looked for at this size
    features: int = 2048  # of a photograph, at most
    frames: int = 120  # of a video, at most
    least: float = 0.6  # share of the photographs that must find their place


@dataclass(frozen=True)
class Config:
    """All sections."""

    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    color: ColorConfig = dataclasses.field(default_factory=ColorConfig)
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    poses: PosesConfig = dataclasses.field(default_factory=PosesConfig)
    method: str = "unisurf"  # what the photographs are explained by (docs/methods.md)
    backend: str = "auto"  # what computes; auto: the first of the others that works here (docs/gpu.md)
    precision: str = "exact"  # exact: float32 throughout | fast: half inputs of matrix products, on a GPU
    threads: int = 0  # CPU threads; 0: all


ANY = math.inf
LARGEST = 1e300  # of a value; more, or no number, is a slip
LONGEST_KEY = 60  # characters that the nearest known key is looked for; the search takes their square
RANGES: dict[str, tuple[float, float]] = {  # least and greatest value that can work, of those where that isn't plain
    "threads": (0, ANY),
    "scene.holdout": (0, ANY),
    "field.levels": (1, 32), "field.log2_entries": (4, 24), "field.base_resolution": (2, 1 << 16), "field.finest_resolution": (0, 1 << 16),
    "field.width": (1, 256), "field.first_levels": (1, ANY), "field.sharpness": (1e-3, ANY),
    "field.sharpness_times_half_width": (0, ANY), "field.sharpness_max": (1e-3, ANY), "field.density_level": (1e-3, ANY),
    "color.width": (1, 256), "color.hidden": (0, 16), "color.appearance": (0, 11),
    "grid.resolution": (8, 512), "grid.update_every": (1, ANY), "grid.decay": (0, 1), "grid.error_budget": (1e-6, 0.99),
    "grid.steps": (8, 1 << 14), "grid.secant_steps": (0, ANY),
    "sampling.interval": (1, ANY), "sampling.front": (0, ANY), "sampling.delta_max": (1e-4, ANY), "sampling.delta_min": (1e-4, ANY),
    "sampling.delta_until": (1e-3, ANY),
    "loss.color": (0, ANY), "loss.huber": (0, ANY), "loss.outlier": (0, ANY), "loss.plain_colors": (0, ANY),
    "loss.transient": (0, ANY),
    "loss.points": (0, ANY), "loss.points_until": (1e-3, ANY),
    "loss.mask": (0, ANY), "loss.smooth": (0, ANY), "loss.smooth_first": (0, ANY), "loss.smooth_distance": (0, ANY),
    "loss.disputed": (0, ANY), "loss.eikonal": (0, ANY),
    "train.minutes": (1e-3, ANY), "train.steps": (1, ANY), "train.rays": (0, ANY), "train.foreground": (0, 1),
    "train.rate_grid": (0, 1), "train.rate_mlp": (0, 1), "train.rate_cameras": (0, 1),
    "train.skip_limit": (0, ANY),
    "train.warmup": (0, ANY), "train.final_rate": (1e-6, 1), "train.seed": (0, ANY),
    "mesh.resolution": (0, 1 << 14), "mesh.min_component": (0, 1), "mesh.shown_by": (0, ANY), "mesh.faces": (0, ANY),
    "poses.max_side": (100, ANY), "poses.features": (100, 1 << 15), "poses.frames": (3, ANY), "poses.least": (0, 1),
}  # fmt: skip
CHOICES = {
    "method": ("unisurf", "nerf", "idr", "wild"),
    "backend": ("auto", "triton", "cuda", "native", "reference"),
    "precision": ("exact", "fast"),
    "field.encoding": ("hash", "frequency", "none"),
    "scene.points": ("auto", "ignore"),
    "scene.convention": (
        "format", "auto",
        *(name + way for way in ("", "-w2c") for name in ("opencv", "opengl", "unity", "pytorch3d", "ldb", "rdb", "ldf", "lub")),
    ),
    "scene.check": ("refuse", "ignore"),
    "scene.background": ("auto", "random", "white", "black", "model"),
    "poses.pairs": ("auto", "all", "sequence"),
    "poses.cameras": ("auto", "one", "folder", "each"),
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what can't work, before an hour is spent on it.

    Raises:
        ConfigError: a number out of its range, or an unknown choice.
    """
    for key, (least, most) in RANGES.items():
        value = _at(config, key)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{key}: want {f'{least:g} or more' if most == ANY else f'{least:g} to {most:g}'}, found {value:g}")
    for key, choices in CHOICES.items():
        if _at(config, key) not in choices:
            raise ConfigError(f"{key}: want one of {', '.join(choices)}; found {_at(config, key)!r}")
    if 0 < config.mesh.resolution < 8:
        raise ConfigError(f"mesh.resolution: want 8 or more, or 0, found {config.mesh.resolution}")
    s = config.sampling
    if s.delta_min > s.delta_max:
        raise ConfigError(f"sampling.delta_min: want at most sampling.delta_max ({s.delta_max:g}), found {s.delta_min:g}")
    for key, usual in (("field.encoding", "hash"), ("loss.eikonal", 0.0), ("train.cameras", False)):
        if config.method != "idr" and _at(config, key) != usual:
            raise ConfigError(f"{key}={_at(config, key)} is of the method idr alone: give --method idr, or leave it out")


def _at(config: Any, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def load_config(
    name_or_file: str | None = None, sets: Sequence[str] = (), method: str | None = None, start: Config | None = None
) -> Config:
    """The defaults, with what a method has different, then a preset or TOML file, then `section.key=value` settings on top.

    Args:
        start: in place of the defaults; what its own method has different is in it.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong type, no such file, no such method.
    """
    config = start or Config()
    if method is not None:
        if method not in CHOICES["method"]:
            raise ConfigError(f"method: want one of {', '.join(CHOICES['method'])}; found {method!r}")
        if method != config.method:
            config = _merge(config, _read_toml(method), method)
    if name_or_file is not None:
        config = _over(config, _read_toml(name_or_file), name_or_file)
    for setting in sets:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set wants section.key=value, found {setting!r}")
        tree: Any = _parse_value(text.strip())
        for part in reversed(key.strip().split(".")):
            tree = {part: tree}
        config = _over(config, tree, f"--set {setting}")
    return config


def _over(config: Config, tree: Mapping[str, Any], source: str) -> Config:
    """`tree` on top. Minutes and steps are one dial: the minutes that it asks for are not outdone by steps from below."""
    train = tree.get("train")
    if isinstance(train, Mapping) and train.get("minutes", "none") != "none":
        config = replace(config, train=replace(config.train, steps=None))
    return _merge(config, tree, source)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values, without those that are None."""
    return {
        f.name: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for f in fields(config)
        if (value := getattr(config, f.name)) is not None
    }


def from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """The defaults with `tree` on top; errors name `source`."""
    return _merge(Config(), tree, source)


def to_toml(config: Config) -> str:
    """TOML text that `load_config` reads back to an equal Config."""
    tree = to_dict(config)
    lines = [f"{key} = {_toml_value(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]"] + [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _read_toml(name_or_file: str) -> dict[str, Any]:
    path = Path(name_or_file)
    if not path.suffix:
        path = PRESETS / f"{name_or_file}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ConfigError(f"no configuration {name_or_file!r}: want a .toml file or one of {known}")
    try:
        return tomllib.loads(read_text(path, ConfigError, MOST_TEXT))
    except RecursionError:
        raise ConfigError(f"{path}: not TOML that can be read (nested too deeply)") from None
    except ValueError as e:
        raise ConfigError(f"{path}: not TOML ({e})") from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text  # a bare string


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


def _merge(config: T, tree: Mapping[str, Any], source: str, prefix: str = "") -> T:
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in hints:
            near = (difflib.get_close_matches(key, hints, n=1) or _elsewhere(key)) if len(key) <= LONGEST_KEY else []
            hint = f"did you mean {prefix if near[0] in hints else ''}{near[0]}?" if near else f"known: {', '.join(hints)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {hint}")
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {prefix}{key} is a section; want {key}.NAME=value")
            changes[key] = _merge(old, value, source, f"{prefix}{key}.")
        else:
            changes[key] = _coerce(hints[key], value, f"{source}: {prefix}{key}")
    return replace(config, **changes)  # type: ignore[type-var]


def _elsewhere(key: str) -> list[str]:
    known = {f.name: f"{s.name}.{f.name}" for s in fields(Config) if s.default_factory is not dataclasses.MISSING
             for f in fields(s.default_factory())}
    return [known[k] for k in difflib.get_close_matches(key, known, n=1)]


def _coerce(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value in (None, "none"):
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
            return float(value)
        if option in (int, str, bool) and type(value) is option and (option is not int or abs(value) < 1 << 63):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            kinds = typing.get_args(option)
            if len(kinds) == len(value):
                return tuple(_coerce(k, v, where) for k, v in zip(kinds, value, strict=True))
    wanted = " or ".join(getattr(o, "__name__", str(o)) if o is not type(None) else "none" for o in options)
    raise ConfigError(f"{where}: want {wanted}, found {value!r}")
