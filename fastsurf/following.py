"""A run folder while somebody else writes it: read again as its files change, never written to.

Everything comes in scene coordinates: the box is [-1, 1]^3, x_world = center + radius * x_scene. So 32 bits will do for what shows it,
wherever in the world the scene lies and however large it is.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from . import formats
from .cameras import View, up_of
from .checkpoint import Header, read_begun, read_header
from .errors import CheckpointError, FastsurfError, MeshError, SceneError
from .guard import picture
from .hooks import Note, PhaseDone, PhaseStarted, TrainState
from .landmarks import kept_points
from .mesh import Mesh
from .meshio import read_mesh
from .reconstruction import BEGUN, CAMERAS, CHECKPOINT, FIRST_MESH, LOG, MESH, POINTS, PREVIEW
from .scene import split
from .ui.jsonlines import read_event

CURVE = 400  # points of the curve, at most; beyond that every second one is dropped
Stamp = tuple[int, int, int]  # of a file: when, how long, which


@dataclass
class Log:
    """What log.jsonl says so far."""

    path: Path
    phase: str = ""
    finished: bool = False
    state: TrainState | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)  # step, PSNR in dB
    notes: list[str] = field(default_factory=list)
    _read: int = 0  # bytes
    _stride: int = 1
    _steps: int = 0

    def begun_anew(self) -> bool:
        """Whether the file is shorter than what was read of it: another run's."""
        return self.path.is_file() and self.path.stat().st_size < self._read

    def update(self) -> bool:
        """Read the whole lines that came since; whether there were any."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return False
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in new.decode("utf-8", "replace").splitlines():
            self._take(line)
        return bool(new)

    def _take(self, line: str) -> None:
        event = read_event(line)
        if isinstance(event, PhaseStarted):
            self.phase, self.finished = event.name, False
        elif isinstance(event, PhaseDone):
            self.finished = event.name == "mesh"
        elif isinstance(event, Note):
            self.notes.append(event.text)
        elif isinstance(event, TrainState):
            self.state = event
            if self._steps % self._stride == 0 and np.isfinite(event.psnr):
                self.curve.append((event.step, event.psnr))
            self._steps += 1
            if len(self.curve) > CURVE:
                self.curve, self._stride = self.curve[::2], 2 * self._stride


@dataclass(frozen=True)
class Shown:
    """A preview as the run has written it: photograph, rendering and normals side by side, (h, 3 w, 3) uint8.

    `view` is the photograph's name and `step` the number of steps before it; empty and None where the file doesn't say so.
    """

    pixels: np.ndarray
    view: str
    step: int | None


class Following:
    """What can be shown of a run, as of the last `update`.

    Attributes:
        header: of its checkpoint, or what it says of itself before it has saved for the first time; None while photographs are read.
        views: photographs and cameras as the run has them, c2w (3, 4) in scene coordinates; empty where the photographs are gone.
        held_out: indices of the views that were kept from training.
        up: (3,) unit.
        mesh, mesh_name: the newest mesh, in scene coordinates, and its file's name.
        points: sparse points (n, 3) in scene coordinates, or None.
        preview: the newest, or None.
        problems: why something isn't shown.
    """

    def __init__(self, run: str | Path):
        self.run = Path(run)
        self.log = Log(self.run / LOG)
        if not any((self.run / name).is_file() for name in (LOG, BEGUN, CHECKPOINT)):
            raise CheckpointError(f"{self.run} is no run: want the folder that a reconstruction makes, with {LOG} and {CHECKPOINT}")
        self.header: Header | None = None
        self.views: tuple[View, ...] = ()
        self.held_out: frozenset[int] = frozenset()
        self.up = np.array([0.0, 0.0, 1.0])
        self.mesh: Mesh | None = None
        self.mesh_name = ""
        self.points: np.ndarray | None = None
        self.preview: Shown | None = None
        self.problems: dict[str, str] = {}
        self._sparse: np.ndarray | None = None  # points of the input itself, in the world
        self._newest = ""  # mesh file, which may be damaged
        self._seen: dict[str, Stamp | None] = {}

    def update(self) -> set[str]:
        """Look again; which of log, preview, scene, mesh, points are others now."""
        if self.log.begun_anew():
            self.log = Log(self.log.path)
        changed = {"log"} if self.log.update() else set()
        if self._changed(PREVIEW):
            self._read_preview()
            changed.add("preview")
        if any([self._changed(CHECKPOINT), self._changed(BEGUN)]) and self._read_header():
            changed.add("scene")
        if self._changed(CAMERAS) and self.header is not None:
            self._read_cameras(self.header)
            changed.add("scene")
        if self.header is None:
            return changed
        names = [name for name in (MESH, FIRST_MESH) if self._stamp(name) is not None]
        newest = max(names, key=lambda name: self._stamp(name) or (0, 0, 0), default=None)
        if newest is not None and (self._changed(newest) or newest != self._newest or "scene" in changed):
            self._newest = newest
            self._read_mesh(newest, self.header)
            changed.add("mesh")
        if self._changed(POINTS) or "scene" in changed:
            self._read_points(self.header)
            changed.add("points")
        return changed

    def to_scene(self, points: np.ndarray) -> np.ndarray:
        """World points (n, 3) in scene coordinates, float64."""
        assert self.header is not None
        return (np.asarray(points, np.float64) - self.header.center) / self.header.radius

    def _stamp(self, name: str) -> Stamp | None:
        try:
            found = (self.run / name).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _changed(self, name: str) -> bool:
        """Whether a file is another than when this was last asked."""
        stamp = self._stamp(name)
        changed = self._seen.get(name) != stamp
        self._seen[name] = stamp
        return changed

    def _read_header(self) -> bool:
        """Whether the scene is another one now; the checkpoint changes every minute, and the scene hardly ever."""
        there = [(stamp, name) for name in (BEGUN, CHECKPOINT) if (stamp := self._stamp(name)) is not None]
        if not there:
            return False
        _, newest = max(there)
        before, self.header = self.header, (read_begun if newest == BEGUN else read_header)(self.run / newest)

        def scene(header: Header | None) -> object:
            return header and (header.scene, header.scene_format, header.center, header.radius, header.photographs)

        if scene(before) == scene(self.header):
            return False
        self._read_cameras(self.header)
        return True

    def _read_cameras(self, header: Header) -> None:
        """Photographs and cameras: those that the run learned, where it did."""
        self.views, self.held_out, self._sparse = (), frozenset(), None
        self.problems.pop("cameras", None)
        try:
            capture = formats.load(Path(header.scene), header.scene_format, "ignore")
            held_out = split(capture.views, header.config.scene.holdout)[1]
            self._sparse = capture.points
            if header.config.train.cameras and (self.run / CAMERAS).is_file():
                learned = formats.load(self.run / CAMERAS, None, "ignore")
                if [v.image.name for v in learned.views] == [v.image.name for v in capture.views]:
                    capture = learned
        except FastsurfError as e:
            self.problems["cameras"] = str(e)
            return
        self.held_out, self.up = frozenset(held_out), up_of(np.stack([view.c2w for view in capture.views]))
        self.views = tuple(
            replace(view, c2w=np.concatenate([view.c2w[:, :3], self.to_scene(view.center)[:, None]], axis=1)) for view in capture.views
        )

    def _read_mesh(self, name: str, header: Header) -> None:
        try:
            mesh = read_mesh(self.run / name)
        except MeshError as e:
            self.problems["mesh"] = str(e)
            return
        self.problems.pop("mesh", None)
        self.mesh, self.mesh_name = replace(mesh, vertices=self.to_scene(mesh.vertices)), name

    def _read_preview(self) -> None:
        self.preview = None
        self.problems.pop("preview", None)
        if self._stamp(PREVIEW) is None:
            return
        try:
            with picture(self.run / PREVIEW, "the preview") as image:
                pixels = np.asarray(image.convert("RGB"))
                view, step = (str(image.info.get(name, "")) for name in ("view", "step"))
        except SceneError as e:
            self.problems["preview"] = str(e)
            return
        self.preview = Shown(pixels, view, int(step) if step.isdecimal() and len(step) < 16 else None)

    def _read_points(self, header: Header) -> None:
        points = self._sparse
        self.problems.pop("points", None)
        if self._stamp(POINTS) is not None:
            try:
                points, _ = kept_points(self.run / POINTS, len(header.photographs))
            except CheckpointError as e:
                self.problems["points"] = str(e)
        self.points = None if points is None else self.to_scene(points)
