"""Everything that is learned of a scene, and its occupancy grid."""

import torch
from torch import Tensor, nn

from .backends import Backend, FusedBackend, Parameters
from .background import Background
from .color import ColorHead
from .config import Config
from .field import FieldSample, OccupancyField
from .grid import OccupancyGrid
from .methods import METHODS
from .poses import Poses
from .rays import Rays
from .surface import Crossings, march


class Model(nn.Module):
    """A `Solid` (render.py) whose schedules follow `set_progress`."""

    now: Tensor

    def __init__(self, config: Config, backend: Backend, background: str, views: int = 0):
        """Args:
        background: model | random | white | black, what lies behind the scene box.
        views: number of photographs, where something is learned of each.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(config.train.seed)
        self.config, self.backend, self.background_kind = config, backend, background
        self.dense = backend.device.type == "cuda"
        self.method = METHODS[config.method]
        self.field = self.method.field(config, generator)
        self.head = ColorHead(config.color, generator)
        self.background = Background(generator) if background == "model" else None
        self.grid = OccupancyGrid(config.grid, config.sampling.front + config.sampling.interval)
        self.poses = Poses(views) if config.train.cameras else None
        self.register_buffer("now", torch.zeros(2), persistent=False)  # half-width of the interval and sharpness
        self.to(backend.device)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Point of the schedules: interval, sharpness, levels."""
        self.progress = progress
        self.field.set_progress(progress)
        self.width, self._sharpness = self.method.schedule(progress, self.config)
        self.now.copy_(torch.tensor([self.width, self._sharpness]))

    @property
    def interval(self) -> float | Tensor:
        """Half-width of the interval; on a GPU a tensor, so that a recorded step follows the schedule."""
        return self.now[0] if self.dense else self.width

    @property
    def sharpness(self) -> float | Tensor:
        """How steep the opacity is in the level; as `interval`."""
        return self.now[1] if self.dense else self._sharpness

    @property
    def occupied(self) -> Tensor:
        return self.grid.occupied

    def level(self, x: Tensor) -> Tensor:
        """(n, 3) -> (n,), positive inside the solid, without gradients."""
        return self.field.level(x, self.backend)

    def corrected(self, rays: Rays) -> Rays:
        """Rays of photographs as the learned cameras see them."""
        return rays if self.poses is None else self.poses(rays)

    def opacity(self, level: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """See `Solid.opacity`."""
        return self.method.opacity(level, length, self.sharpness)

    def first_crossing(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        """See `surface.first_crossing`."""
        lattice, count = march(rays, self.occupied, self.grid.step, self.backend, offset)
        t, hit = self.field.first_crossing(rays, lattice, count, self.grid.step, self.config.grid.secant_steps, self.backend)
        return Crossings(t, hit, lattice, count, self.grid.step)

    def sample(self, x: Tensor) -> FieldSample:
        """Level, feature and normal of (n, 3)."""
        return self.field.sample(x, self.backend)

    def color(self, x: Tensor, sample: FieldSample, directions: Tensor) -> Tensor:
        """Colours (n, 3) in [0, 1]."""
        rgb: Tensor = self.head(x, sample, directions, self.backend)
        return rgb

    def weights_of(self, alphas: Tensor) -> Tensor:
        """See `compositing.weights_of`."""
        return self.backend.weights_of(alphas)

    def update_grid(self, generator: torch.Generator, everywhere: bool = False) -> None:
        """Refresh the occupancy grid."""
        if self.method.fused and isinstance(self.backend, FusedBackend):
            self.grid.update_natively(self.backend, self.in_use(), generator, everywhere)
        else:
            self.grid.update(lambda x: self.opacity(self.level(x), self.grid.step)[0], generator, everywhere)

    def occupancy_field(self) -> OccupancyField:
        """The field, of a method that the fused step knows."""
        assert isinstance(self.field, OccupancyField), type(self.field)
        return self.field

    def in_use(self) -> Parameters:
        """The parameters of now, as a `FusedBackend` takes them."""
        field, sharpness = self.occupancy_field(), float(self.sharpness)
        weights = field.weights()
        return Parameters(
            field.table, field.levels, *weights, list(self.head.weights), self.head.used, field.config.prior_radius, sharpness,
            self.head.direction == "reflected",
        )  # fmt: skip
