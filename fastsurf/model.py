"""Everything that is learned of a scene, and its occupancy grid."""

import torch
from torch import Tensor, nn

from .appearance import MEAN, Appearance
from .backends import Backend, FusedBackend, Parameters
from .background import Background
from .color import ColorHead
from .config import Config
from .corrections import Corrections
from .field import FieldSample, OccupancyField
from .grid import OccupancyGrid
from .methods import METHODS
from .rays import Rays
from .surface import Crossings, march, unsearched

EARLY_UNTIL = 0.6  # progress at which the shape stands


class Model(nn.Module):
    """A `Solid` (render.py) whose schedules follow `set_progress`."""

    now: Tensor

    def __init__(self, config: Config, backend: Backend, background: str, photographs: int = 0):
        """Args:
        background: model | random | white | black, what lies behind the scene box.
        photographs: how many the scene has; asked where something is learned of each.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(config.train.seed)
        self.config, self.backend, self.background_kind = config, backend, background
        self.dense = backend.device.type == "cuda"
        self.method = METHODS[config.method]
        self.field = self.method.field(config, generator)
        self.head = ColorHead(config.color, generator)
        dimensions = config.color.appearance
        self.background = Background(generator, embedded=dimensions > 0) if background == "model" else None
        self.appearance = Appearance(photographs, dimensions) if dimensions else None
        self.corrections = Corrections(photographs) if config.train.cameras else None
        self.grid = OccupancyGrid(config.grid, self.method.looks(config))
        self.register_buffer("now", torch.zeros(5), persistent=False)  # half-width, sharpness, plain_colors, trust_points, early
        self.to(backend.device)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Point of the schedules: interval, sharpness, levels."""
        self.progress = progress
        self.field.set_progress(progress)
        self.width, self._sharpness = self.method.schedule(progress, self.config)
        self._plain = float(progress >= self.config.loss.plain_colors)
        self._points = fade(progress, self.config.loss.points_until)
        self._early = fade(progress, EARLY_UNTIL)
        self.now.copy_(torch.tensor([self.width, self._sharpness, self._plain, self._points, self._early]))

    @property
    def interval(self) -> float | Tensor:
        """Half-width of the interval; on a GPU a tensor, so that a recorded step follows the schedule."""
        return self.now[0] if self.dense else self.width

    @property
    def sharpness(self) -> float | Tensor:
        """How steep the opacity is in the level; as `interval`."""
        return self.now[1] if self.dense else self._sharpness

    @property
    def plain_colors(self) -> float | Tensor:
        """1 once colours learn from outliers as from other rays, 0 before; as `interval`."""
        return self.now[2] if self.dense else self._plain

    @property
    def trust_points(self) -> float | Tensor:
        """What is left of the weight of sparse points; as `interval`."""
        return self.now[3] if self.dense else self._points

    @property
    def early(self) -> float | Tensor:
        """1 while the shape is found, 0 once it stands; as `interval`."""
        return self.now[4] if self.dense else self._early

    @property
    def occupied(self) -> Tensor:
        return self.grid.occupied

    def level(self, x: Tensor) -> Tensor:
        """(n, 3) -> (n,), positive inside the solid, without gradients."""
        return self.field.level(x, self.backend)

    def corrected(self, rays: Rays) -> Rays:
        """Rays of photographs as the learned cameras see them."""
        return rays if self.corrections is None else self.corrections(rays)

    def opacity(self, level: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """See `Solid.opacity`."""
        return self.method.opacity(level, length, self.sharpness)

    def march(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        """See `Solid.march`."""
        return unsearched(rays, *march(rays, self.occupied, self.grid.step, self.backend, offset), self.grid.step)

    def first_crossing(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        """See `surface.first_crossing`."""
        lattice, count = march(rays, self.occupied, self.grid.step, self.backend, offset)
        t, hit = self.field.first_crossing(rays, lattice, count, self.grid.step, self.config.grid.secant_steps, self.backend)
        return Crossings(t, hit, lattice, count, self.grid.step)

    def sample(self, x: Tensor) -> FieldSample:
        """Level, feature and normal of (n, 3)."""
        return self.field.sample(x, self.backend)

    def color(self, x: Tensor, sample: FieldSample, directions: Tensor, view: Tensor | None = None) -> Tensor:
        """Colours (n, 3) in [0, 1] as in photographs view (n,) int64; without them, as in their mean."""
        view = torch.full((len(x),), MEAN, device=x.device) if view is None else view
        rgb: Tensor = self.head(x, sample, directions, self.appearance_of(view), self.backend)
        return rgb

    def appearance_of(self, view: Tensor) -> Tensor | None:
        """Embeddings (n, a) of photographs view (n,) int64; None where they have none."""
        return None if self.appearance is None else self.appearance(view)

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
        inputs, prior = self.head.used, field.config.prior_radius
        return Parameters(field.table, field.levels, *field.weights(), list(self.head.weights), inputs, prior, sharpness)


def fade(progress: float, until: float) -> float:
    """1 up to half of `until`, then falling to 0 there."""
    return min(max(2.0 * (1.0 - progress / until), 0.0), 1.0)
