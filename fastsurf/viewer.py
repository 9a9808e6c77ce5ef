"""A run in a browser, finished or still training: cameras, scene box, sparse points, the mesh as it gets better, the numbers.

viser serves the page and keeps it up to date; everything stands in scene coordinates (following.py). Whoever looks through a camera sees
the photograph as a pinhole camera would have taken it, with the window for a frame (pinhole.py), so that mesh and photograph fit.
"""

import contextlib
import io
import math
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from .cameras import View
from .errors import SceneError, UsageError
from .following import Following
from .meshio import Y_UP, as_glb
from .pinhole import OUTSIDE, fitting_view, read_photograph, through_pinhole
from .rays import box_edges
from .ui.plain import duration, quantity

HOST, PORT, PORTS = "127.0.0.1", 8080, 100  # where it is looked for a free port, and how many are tried
LOOK = 1.0  # seconds between two looks at the run
THUMBNAIL, BESIDE, BEHIND = 96, 480, 1280  # pixels of the larger side: on a frustum, in the panel, behind the mesh
A_WHILE = 0.5  # seconds of thumbnails between two looks
IN_FRONT, FAR_BEHIND = 0.02, 150.0  # depths of a photograph over and behind the mesh, scene units
FRUSTUM = 0.06  # size, of the cameras' distance
NEAR, LEAST, ABOVE = 0.8, 3.5, 0.3  # where one begins: of the cameras' distance, at least (scene units), and of it above them
TRAINING, HELD_OUT, SPARSE, EDGES, CLAY = (60, 110, 200), (235, 140, 40), (60, 160, 90), (150, 150, 150), (200, 196, 190)
MOST_POINTS, POINTS_WITHIN = 100_000, 6.0  # scene units
SAME_PLACE, SAME_TURN = 1e-3, 1e-3  # scene units; of quaternions: the camera is where it was put
NOTES = 3  # of the log's, the last ones
QUALITY = 90  # of a preview as JPEG
SURFACES = ("colours", "shape", "none")


def free_port(host: str, port: int | None = None) -> int:
    """The port itself if it is free, or the first free one from PORT on.

    Raises:
        UsageError: no such host, or the port is taken or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise UsageError(f"--host {host}: {e.strerror}; want a name or an address of this machine") from None
    error: OSError | OverflowError | None = None
    for number in range(PORT, PORT + PORTS) if port is None else [port]:
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((address[0], number, *address[2:]))
                return number
            except (OSError, OverflowError) as e:
                error = e
    said = error.strerror if isinstance(error, OSError) else "want 1 to 65535"
    raise UsageError(f"can't serve on {host}, port {PORT if port is None else port}: {said}; another one: --port {PORT + PORTS}")


def literally(text: str) -> str:
    """A text in Markdown as it stands: names and notes come out of files, and the page would take HTML in them for its own."""
    return "".join(c if c.isalnum() or c in " .,:/" else f"&#{ord(c)};" for c in text)


def status(run: Following) -> str:
    """How the run stands, in Markdown."""
    log, state, header = run.log, run.log.state, run.header
    rows: list[tuple[str, str]] = []
    if state is not None:
        left = "" if log.phase != "train" else f", {duration(state.seconds_left)} left"
        rows = [
            ("step", f"{state.step:,} ({state.progress:.0%})"), ("time", f"{duration(state.seconds)}{left}"),
            ("PSNR", f"{state.psnr:.2f} dB"), ("loss", f"{state.loss:.4f}"),
            *([("interval ±", f"{state.half_width:.3f}")] if state.half_width else []),
            ("occupied", f"{state.occupied:.1%}"), ("samples/s", quantity(state.samples_per_second)),
        ]  # fmt: skip
    elif header is not None:
        rows = [("step", f"{header.step:,} ({header.progress:.0%})"), ("time", duration(header.seconds))]
    if run.mesh is not None:
        rows.append(("mesh", f"{run.mesh_name}, {len(run.mesh.faces):,} faces"))
    if run.views:
        held_out = f", {len(run.held_out)} held out" if run.held_out else ""
        rows.append(("photographs", f"{len(run.views)}{held_out}"))
    if run.points is not None:
        rows.append(("points", f"{len(run.points):,}"))
    if header is not None:
        rows.append(("box", f"{', '.join(f'{c:.5g}' for c in header.center)} ± {header.radius:.4g}"))
    phase = "finished" if log.finished else literally(log.phase) or ("no log" if header is None or header.step else "read")
    waiting = "" if header is not None else "\n\nCameras and box come when the photographs are read."
    waiting += "" if run.mesh is not None or log.finished else "\n\nThe first mesh comes half-way."
    remarks = "".join(f"\n\n{literally(text)}" for text in [*run.problems.values(), *log.notes[-NOTES:]])
    return f"**{phase}**\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows) + waiting + remarks


@dataclass
class Looking:
    """Somebody looks through camera `view`."""

    view: int
    position: np.ndarray
    wxyz: np.ndarray
    size: tuple[int, int]  # of the window
    arrived: bool = False

    def left(self, position: np.ndarray, wxyz: np.ndarray) -> bool:
        """Whether the camera, which needs a moment to get there, was turned or moved away."""
        there = np.abs(position - self.position).max() < SAME_PLACE and 1.0 - abs(float(wxyz @ self.wxyz)) < SAME_TURN
        self.arrived |= bool(there)
        return self.arrived and not there


class Viewer:
    """Serves a run; a context manager.

    Args:
        host: the address to serve on; others than this machine's own loopback let others look, too.
        port: None takes the first free one from PORT on.

    Raises:
        UsageError: viser isn't installed, or nothing can be served there.
        CheckpointError: not a run, or its checkpoint is damaged.
    """

    def __init__(self, run: str | Path, host: str = HOST, port: int | None = None):
        try:
            import viser
        except ImportError:
            raise UsageError("view needs viser: pip install 'fastsurf[viewer]'") from None
        self.following = Following(run)
        self._lock = threading.RLock()  # callbacks come on threads of their own
        self._frusta: list[Any] = []
        self._bare: list[int] = []  # frusta without a thumbnail
        self._looking: dict[int, Looking] = {}  # by client
        self._shape: Any = None
        port = free_port(host, port)
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints a table
            self._server: Any = viser.ViserServer(host, port, label=f"fastsurf · {Path(run).name}", verbose=False)
        self.host, self.port = host, int(self._server.get_port())
        self._lay_out()
        self.update()

    @property
    def url(self) -> str:
        """Where to look."""
        shown = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}"

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # and says goodbye
            self._server.stop()

    def follow(self) -> NoReturn:
        """Look again and again, until Ctrl-C."""
        while True:
            start = time.monotonic()
            self.update()
            time.sleep(max(0.0, LOOK - (time.monotonic() - start)))

    def update(self) -> set[str]:
        """Look at the run once and show what has changed: any of log, preview, scene, mesh, points."""
        with self._lock:
            changed = self.following.update()
            if "preview" in changed:
                self._show_preview()
            if "scene" in changed:
                self._show_scene()
            if "mesh" in changed:
                self._show_mesh()
            if "points" in changed:
                self._show_points()
            if changed:
                self._status.content = status(self.following)
                self._plot()
        start = time.monotonic()
        while self._bare and time.monotonic() - start < A_WHILE:
            self._add_thumbnail(self._bare.pop(0))
        return changed

    def _lay_out(self) -> None:
        """The panel."""
        gui = self._server.gui
        gui.configure_theme(show_share_button=False, show_logo=False)
        self._status = gui.add_markdown("")
        self._preview_place = gui.add_folder("Preview", visible=False)
        with self._preview_place:
            self._preview = gui.add_image(np.full((1, 3, 3), OUTSIDE, np.uint8), format="jpeg", jpeg_quality=QUALITY)
            self._preview_of = gui.add_markdown("")
        self._panel = gui.add_folder("Photograph", visible=False)
        with self._panel:
            self._which = gui.add_slider("number", 0, 1, 1, 0)
            self._name = gui.add_markdown("")
            self._picture = gui.add_image(np.full((3, 4, 3), OUTSIDE, np.uint8))
            self._enter = gui.add_button("Look through this camera")
            hint = "how much of the mesh the photograph covers, from the left, while you look through its camera"
            self._wipe = gui.add_slider("over the mesh", 0.0, 1.0, 0.05, 0.0, hint=hint)
            self._leave = gui.add_button("Back to the whole")
        with gui.add_folder("Shown"):
            self._surface = gui.add_dropdown("mesh", SURFACES, initial_value=SURFACES[0])
            self._cameras = gui.add_checkbox("cameras", True)
            self._box = gui.add_checkbox("box", True)
            self._sparse = gui.add_checkbox("points", True)
        self._curve: Any = None
        self._curve_place = gui.add_folder("PSNR, dB", visible=False)
        for shown in (self._surface, self._cameras, self._box, self._sparse):
            shown.on_update(lambda _: self._show_what_is_wanted())
        self._which.on_update(lambda event: self._pick(event.client))
        self._enter.on_click(lambda event: self._look(event.client, self._which.value))
        self._leave.on_click(lambda event: self._back(event.client))
        self._wipe.on_update(lambda _: self._put_behind_all())
        self._server.on_client_connect(lambda client: client.camera.on_update(lambda _: self._moved(client)))
        self._server.on_client_disconnect(lambda client: self._forget(client.client_id))

    def _show_preview(self) -> None:
        """The newest one in the place of the one before."""
        preview = self.following.preview
        self._preview_place.visible = preview is not None
        if preview is None:
            return
        after = f"step {preview.step:,}" if preview.step is not None else ""
        larger = -(-BESIDE // preview.pixels.shape[1])  # or the panel would move when a larger one comes
        with self._server.atomic():  # picture and words change together
            self._preview.image = preview.pixels.repeat(larger, 0).repeat(larger, 1)
            self._preview_of.content = " · ".join(filter(None, [after, literally(preview.view), "photograph, colours, normals"]))

    def _show_scene(self) -> None:
        """Box, cameras and the way up."""
        run, scene = self.following, self._server.scene
        scene.set_up_direction(run.up)
        scene.add_line_segments("/box", points=box_edges().astype(np.float32), colors=EDGES, thickness=0.006)
        scene.add_frame("/box/axes", axes_length=0.25, axes_radius=0.006, position=(-1.0, -1.0, -1.0))
        for frustum in self._frusta:
            frustum.remove()
        self._frusta, self._bare = [], list(range(len(run.views)))
        self._all = scene.add_frame("/cameras", show_axes=False)
        distance = float(np.median([np.linalg.norm(v.center) for v in run.views])) if run.views else 3.0
        for i, view in enumerate(run.views):
            (fx, fy), c = view.camera.focal, view.camera
            frustum = scene.add_camera_frustum(
                f"/cameras/{i}", 2.0 * math.atan(0.5 * c.height / fy), c.width * fy / (c.height * fx), scale=FRUSTUM * distance,
                color=HELD_OUT if i in run.held_out else TRAINING, wxyz=self._wxyz(view), position=view.center, thickness=0.002 * distance,
            )  # fmt: skip
            frustum.on_click(lambda event, i=i: self._look(event.client, i))
            self._frusta.append(frustum)
        first, away = run.views[0].center if run.views else np.ones(3), max(NEAR * distance, LEAST)
        initial = self._server.initial_camera
        initial.position, initial.look_at, initial.fov = away * (first / np.linalg.norm(first) + ABOVE * run.up), np.zeros(3), 0.9
        for client in self._server.get_clients().values():
            self._back(client)
        self._panel.visible = bool(run.views)
        if run.views:
            self._which.max = max(len(run.views) - 1, 1)
            self._which.value = min(self._which.value, len(run.views) - 1)
            self._pick(None)
        self._show_what_is_wanted()

    def _show_mesh(self) -> None:
        mesh = self.following.mesh
        if mesh is None:
            return
        import viser.transforms

        upright = viser.transforms.SO3.from_matrix(Y_UP.T).wxyz
        self._server.scene.add_glb("/mesh/colours", as_glb(mesh), wxyz=upright)
        self._shape = None
        self._show_what_is_wanted()

    def _show_points(self) -> None:
        points = self.following.points
        if points is None:
            return
        near = points[np.abs(points).max(1, initial=0.0) < POINTS_WITHIN]
        near = near[:: -(-len(near) // MOST_POINTS) or 1].astype(np.float32)
        self._server.scene.add_point_cloud(
            "/points", points=near, colors=SPARSE, point_size=0.012, point_shape="circle", precision="float32"
        )
        self._show_what_is_wanted()

    def _show_what_is_wanted(self) -> None:
        """As the panel has it. The bare shape is made, and sent, when it is asked for."""
        with self._lock:
            mesh, scene = self.following.mesh, self._server.scene
            if self._surface.value == "shape" and self._shape is None and mesh is not None:
                vertices = mesh.vertices.astype(np.float32)
                self._shape = scene.add_mesh_simple("/mesh/shape", vertices=vertices, faces=mesh.faces, color=CLAY, side="double")
            wanted = {
                "/mesh/colours": self._surface.value == "colours", "/mesh/shape": self._surface.value == "shape", "/box": self._box.value,
                "/points": self._sparse.value, "/cameras": self._cameras.value,
            }  # fmt: skip
            if self._looking:
                wanted |= dict.fromkeys(("/box", "/points", "/cameras"), False)
            for name, visible in wanted.items():
                node = scene.get_handle_by_name(name)
                if node is not None:
                    node.visible = visible

    def _plot(self) -> None:
        """PSNR by step."""
        import viser.uplot

        if len(self.following.log.curve) < 2:
            return
        data = tuple(np.array(column, np.float64) for column in zip(*self.following.log.curve, strict=True))
        if self._curve is not None:
            self._curve.data = data
            return
        series = (viser.uplot.Series(label="step"), viser.uplot.Series(label="PSNR", stroke="#3c6ec8", width=2))
        with self._curve_place:
            self._curve = self._server.gui.add_uplot(data, series, scales={"x": viser.uplot.Scale(time=False)}, aspect=2.0)
        self._curve_place.visible = True

    def _add_thumbnail(self, i: int) -> None:
        with contextlib.suppress(SceneError):  # whoever looks at it is told
            picture = read_photograph(self.following.views[i], THUMBNAIL)[0].numpy()
            self._frusta[i].image = picture

    def _pick(self, client: Any) -> None:
        """Show the photograph in the panel; whoever looks through a camera goes on to this one."""
        with self._lock:
            which = int(self._which.value)
            view = self.following.views[which]
            role = ", held out" if which in self.following.held_out else ""
            self._name.content = literally(f"{view.name}{role}")
            try:
                self._picture.image = read_photograph(view, BESIDE)[0].numpy()
            except SceneError as e:
                self._name.content += literally(f": {e}")
                return
            if client is not None and client.client_id in self._looking and self._looking[client.client_id].view != which:
                self._look(client, which)

    def _look(self, client: Any, which: int) -> None:
        """Put somebody's camera where the photograph was taken, and the photograph behind the mesh."""
        if client is None:
            return
        with self._lock:
            view = self.following.views[which]
            forward, size = view.c2w[:, 2], (int(client.camera.image_width), int(client.camera.image_height))
            self._looking[client.client_id] = Looking(which, view.center, self._wxyz(view), size)
            with client.atomic():
                client.camera.up_direction = -view.c2w[:, 1]
                client.camera.position = view.center
                client.camera.look_at = view.center + max(float(-view.center @ forward), 0.5) * forward
                client.camera.fov = fitting_view(view.camera, size[0] / size[1])
            self._put_behind(client)
            if self._which.value != which:
                self._which.value = which
            self._show_what_is_wanted()

    def _back(self, client: Any) -> None:
        """From a camera to where one began."""
        if client is None:
            return
        self._forget(client.client_id)
        initial = self._server.initial_camera
        with client.atomic():
            client.scene.set_background_image(None)
            client.camera.up_direction = self.following.up
            client.camera.position, client.camera.look_at, client.camera.fov = initial.position, initial.look_at, initial.fov

    def _moved(self, client: Any) -> None:
        """A window was resized, or its camera moved: a photograph fits only where it was taken."""
        with self._lock:
            looking = self._looking.get(client.client_id)
            if looking is None:
                return
            camera = client.camera
            if looking.left(np.asarray(camera.position), np.asarray(camera.wxyz)):
                client.scene.set_background_image(None)
                self._forget(client.client_id)
            elif (int(camera.image_width), int(camera.image_height)) != looking.size:
                self._look(client, looking.view)

    def _forget(self, client_id: int) -> None:
        with self._lock:
            self._looking.pop(client_id, None)
            self._show_what_is_wanted()

    def _put_behind_all(self) -> None:
        with self._lock:
            for client_id, client in self._server.get_clients().items():
                if client_id in self._looking:
                    self._put_behind(client)

    def _put_behind(self, client: Any) -> None:
        """The photograph behind the mesh, and its left part over it, as far as the slider has it."""
        looking = self._looking[client.client_id]
        view = self.following.views[looking.view]
        scale = min(1.0, BEHIND / max(looking.size))
        width, height = (max(1, round(scale * n)) for n in looking.size)
        try:
            photograph, camera = read_photograph(view, BEHIND)
        except SceneError as e:
            client.add_notification("No photograph", str(e))
            return
        picture = through_pinhole(photograph, camera, fitting_view(view.camera, looking.size[0] / looking.size[1]), width, height)
        depth = None
        if self._wipe.value > 0:
            depth = np.full((height, width), FAR_BEHIND, np.float32)
            depth[:, : round(self._wipe.value * width)] = IN_FRONT
        client.scene.set_background_image(picture, format="jpeg", jpeg_quality=85, depth=depth)

    @staticmethod
    def _wxyz(view: View) -> np.ndarray:
        import viser.transforms

        return np.asarray(viser.transforms.SO3.from_matrix(view.c2w[:, :3]).wxyz, np.float64)
