"""The training loop: a generator that yields a `TrainState` after every step and that the caller owns.

    run = Training(scene, model, backend)
    for state in train(run):
        ...  # look, save, stop whenever
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .backends import Backend, FusedBackend
from .config import Config, TrainConfig
from .disputes import Disputes
from .errors import BackendError
from .forecast import Forecast
from .fused import FusedStep
from .hooks import TrainState
from .losses import Seen, weights_for
from .methods import samples_per_ray
from .model import Model
from .optim import Optimizer
from .patches import Patches
from .rays import Batch, Rays
from .recording import Recording
from .render import Samples
from .sampling import decay
from .scene import Scene

DEFAULT_MINUTES = {"cpu": 3.0, "cuda": 0.5}
DEFAULT_RAYS = {"cpu": 1024, "cuda": 4096}  # a GPU takes four times as many in less than twice the time
SHORT_MINUTES, SHORT_RAYS = 0.5, 512  # a CPU has too few steps in so short a run, and smaller ones are worth more
DEFAULT_CELLS, SHORT_CELLS = 512, 256  # of the mesh; what half as many save is time for more steps
GRID_LOOKS_EVERYWHERE, SHORT_LOOKS = 8, 2  # the first grid updates look at every cell
SMALL = 1 << 16  # numbers of a parameter whose gradient is looked at in every step
LEAST_SHARE = 0.2  # of `train.minutes` that is training, however long the rest takes
PATCHES_FROM = 0.15  # progress; before, most of what is unexplained is not yet learned
SKIPPED_SHARE = 0.01  # of all steps, that may be skipped however many they are
PSNR_MEMORY = 0.98  # of the running mean of squared errors, per step


class Training:
    """A scene, a model and all that changes while it learns; what a checkpoint keeps."""

    def __init__(self, scene: Scene, model: Model, backend: Backend):
        self.scene, self.model, self.backend = scene, model, backend
        self.config = model.config
        self.optimizer = Optimizer(model, self.config.train, backend)
        self.generator = torch.Generator(backend.device).manual_seed(self.config.train.seed)
        self.rays = rays_a_step(self.config.train, backend.device.type)
        self.short = is_short(self.config.train, backend.device.type)
        self.looks = SHORT_LOOKS if self.short else GRID_LOOKS_EVERYWHERE
        if model.appearance is not None:
            model.appearance.learned[[i for i in scene.train if i not in scene.blind]] = True
        used = "points" in model.method.losses and self.config.loss.points != 0 and self.config.scene.points != "ignore"
        self.landmarks = scene.landmarks.to(backend.device) if used and scene.landmarks is not None else None
        self.weights = weights_for(self.config.loss, scene.masks is not None, self.landmarks is not None, len(scene.train))
        self.patches = Patches(scene.images, backend.device) if self.config.loss.transient > 0 else None
        disputed = "smooth" in model.method.losses and self.weights.smooth > 0 and self.weights.disputed > 0
        self.disputes = Disputes(self.weights.disputed, backend.device) if disputed else None
        self.step = 0
        self.skipped, self.in_a_row = 0, 0  # steps whose numbers were not finite: all, and those just now
        self.paused = 0.0  # seconds since the last step that are nobody's
        self.seconds = 0.0  # of training
        self.aside = 0.0  # of these, spent on what happens once: no part of the pace
        self.besides = 0.0  # seconds of `train.minutes` that are kept for reading and meshing
        self.meshed = False  # a first mesh has told how long that takes
        self.squared_error = 1.0  # running mean, per channel
        self.learn: Callable[[], Tensor] | None = None  # `learn(self)`, or a recording of it
        self.fused = FusedStep(model, backend) if isinstance(backend, FusedBackend) and model.method.fused else None  # None: by autograd
        self.forecast = Forecast(decay(self.config.sampling))
        self.note = ""  # for the user, once training has begun

    def prepare(self) -> Callable[[], Tensor]:
        """`learn`; at first compiled and recorded, where that can be."""
        if self.learn is None:
            self.learn = lambda: learn(self)
            if self.backend.capturable and self.model.method.recordable:
                self.model.set_progress(self.progress())
                state = self.generator.get_state()
                try:
                    self.learn = Recording(self.learn, list(self.model.parameters()), self.generator)
                except RuntimeError as e:
                    self.model.zero_grad()
                    self.generator = torch.Generator(self.backend.device)  # the old one still waits for its recording
                    self.generator.set_state(state)
                    self.note = f"steps are slower than they could be, since they can't be recorded: {str(e).splitlines()[0]}"
        return self.learn

    def progress(self) -> float:
        """How far along the schedules are, in [0, 1]; 1 is the end."""
        t = self.config.train
        if t.steps is not None:
            return min(self.step / t.steps, 1.0)
        minutes = t.minutes or DEFAULT_MINUTES[self.backend.device.type]
        return min(self.seconds / max(60.0 * minutes - self.besides, LEAST_SHARE * 60.0 * minutes), 1.0)


def is_short(config: TrainConfig, device: str) -> bool:
    """Whether a device (cpu or cuda) has but little time."""
    return device == "cpu" and config.steps is None and (config.minutes or DEFAULT_MINUTES[device]) <= SHORT_MINUTES


def rays_a_step(config: TrainConfig, device: str) -> int:
    """As configured, else what suits the device (cpu or cuda) and the time."""
    return config.rays or (SHORT_RAYS if is_short(config, device) else DEFAULT_RAYS[device])


def cells_along(config: Config, device: str) -> int:
    """The mesh's resolution: as configured, else what suits the device (cpu or cuda) and the time."""
    return config.mesh.resolution or (SHORT_CELLS if is_short(config.train, device) else DEFAULT_CELLS)


def train(run: Training) -> Iterator[TrainState]:
    """Steps until progress is 1. The clock of `train.minutes` runs on while the caller looks at a state, less `run.paused`.

    A step whose losses or gradients are not finite is skipped: parameters and moments stay as they are. A recorded one (recording.py) is
    known one step late; it left gradients of 0, so that parameters moved by the moments they had.

    Raises:
        BackendError: too many steps were skipped.
    """
    run.prepare()  # before the clock starts
    began = time.perf_counter() - run.seconds
    run.forecast(run.progress(), run.seconds - run.aside)
    while (progress := run.progress()) < 1.0:
        start = time.perf_counter()
        losses, mse, hit, samples = _step(run, progress)
        now = time.perf_counter()
        began, run.paused = began + run.paused, 0.0
        run.seconds = now - began
        run.step += 1
        done = run.progress()
        if math.isfinite(mse):
            run.squared_error = _running(run.squared_error, mse, run.step)
        yield TrainState(
            step=run.step,
            progress=done,
            seconds=run.seconds,
            seconds_left=_seconds_left(run, done),
            loss=sum(losses.values()),
            psnr=-10.0 * math.log10(max(run.squared_error, 1e-10)),
            losses=losses,
            half_width=run.model.width,
            occupied=run.model.grid.share,
            hit=hit,
            samples_per_second=samples / (now - start),
            skipped=run.skipped,
        )


def _seconds_left(run: Training, done: float) -> float:
    if run.config.train.steps is not None:
        return run.forecast(done, run.seconds - run.aside)
    return run.seconds * (1.0 - done) / done if done > 0 else math.inf


def _running(mean: float, value: float, step: int) -> float:
    memory = min(PSNR_MEMORY, 1.0 - 1.0 / step)
    return memory * mean + (1.0 - memory) * value


def _step(run: Training, progress: float) -> tuple[dict[str, float], float, float, int]:
    """Losses by name, mean squared error, share of hits, samples placed."""
    model, config = run.model, run.config
    model.set_progress(progress)
    if run.patches is not None and progress >= PATCHES_FROM and run.step % config.grid.update_every == 0:
        run.patches.judge(config.loss.transient)
    if run.step % config.grid.update_every == 0:
        model.update_grid(run.generator, everywhere=run.step < run.looks * config.grid.update_every)
    numbers = run.prepare()().tolist()
    losses = dict(zip(loss_names(run), numbers, strict=False))
    good = math.isfinite(sum(numbers))
    if not good:
        _count_skipped(run, losses)
    if good or isinstance(run.learn, Recording):
        run.in_a_row = 0 if good else run.in_a_row
        run.optimizer.step(progress)
    else:
        run.model.zero_grad()
    return losses, numbers[-3], numbers[-2], run.rays * samples_per_ray(config)


def _count_skipped(run: Training, losses: dict[str, float]) -> None:
    run.skipped, run.in_a_row = run.skipped + 1, run.in_a_row + 1
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    cause = f"the loss {', '.join(bad)} is" if bad else "gradients are"
    if run.skipped == 1:
        run.note = f"step {run.step} was skipped: {cause} not finite; more such steps are counted"
    limit = run.config.train.skip_limit
    if run.in_a_row > limit or run.skipped > max(limit, SKIPPED_SHARE * run.step):
        raise BackendError(
            f"training diverged at step {run.step}: {cause} not finite, and so it was {run.in_a_row} steps in a row, {run.skipped} in all; "
            "lower train.rate_grid, or use --backend reference"
        )


def learn(run: Training) -> Tensor:
    """Look at random pixels and leave gradients on the parameters.

    Returns:
        the losses in the order of `loss_names`, the mean squared error, the share of rays that hit, and 0, or NaN if a gradient
        is not finite: (n_losses + 3,).
    """
    model, config, generator = run.model, run.config, run.generator
    batch = run.scene.sample(run.rays, generator, config.train.foreground, run.fused.backend if run.fused else None)
    batch = replace(batch, rays=model.corrected(batch.rays))
    behind = background_color(model, batch.rays, generator)
    samples = Samples(config.sampling.front, config.sampling.interval, generator)
    target = batch.rgb if model.background is not None else on_background(batch, behind)
    patch = None if run.patches is None else run.patches.of(batch)
    trust = None if run.patches is None or patch is None else run.patches.trust(patch)
    known = None if run.landmarks is None else run.landmarks.draw(generator)
    if run.fused is not None:
        numbers, errors = run.fused(batch, behind, target, samples, run.weights, trust, known, run.disputes)
        if run.patches is not None and patch is not None:
            run.patches.note(patch, errors)
        return torch.cat([numbers, _flaw(model)])
    rendering, found = model.method.render(batch.rays, model, model.interval, samples, lambda _: behind)
    now = model.plain_colors, generator, trust, known, model.trust_points, model.early
    seen = Seen(batch, rendering, found, target, run.weights, *now, run.disputes)
    losses = torch.stack([getattr(run.weights, name) * model.method.losses[name](model, seen) for name in loss_names(run)])
    losses.sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        errors = rendering.rgb - target
        if run.patches is not None and patch is not None:
            run.patches.note(patch, errors)
        if run.disputes is not None:
            run.disputes.note(batch, found.t, found.hit, errors)
        mse = (errors**2).mean()
        return torch.cat([losses, torch.stack([mse, found.hit.float().mean()]), _flaw(model)])


def _flaw(model: Model) -> Tensor:
    """0 if all gradients are finite, else NaN, (1,). Large tables are left out: what reaches them is in the gradients of matrices, too."""
    sums = [p.grad.sum() for p in model.parameters() if p.grad is not None and p.numel() <= SMALL]
    return 0.0 * torch.stack(sums).sum()[None]


def loss_names(run: Training) -> list[str]:
    """Of the losses in use, in their order."""
    weights = run.weights
    there = {"mask": run.scene.masks is not None, "points": run.landmarks is not None}
    asked = {name: getattr(weights, name) > 0 and there.get(name, True) for name in run.model.method.losses}
    return [name for name, ask in asked.items() if ask or name == "color"]


def background_color(model: Model, rays: Rays, generator: torch.Generator | None) -> Tensor:
    """What lies behind the box: learned, one plain colour, or (to teach opacity) a random colour for each ray; (n, 3)."""
    if model.background is not None:
        rgb: Tensor = model.background(rays, model.backend, generator, model.appearance_of(rays.image_index))
        return rgb
    if model.background_kind == "random" and generator is not None:
        return torch.rand(len(rays), 3, generator=generator, device=rays.origins.device)
    return rays.origins.new_full((len(rays), 3), 0.0 if model.background_kind == "black" else 1.0)


def on_background(batch: Batch, behind: Tensor) -> Tensor:
    """The photograph's colours, with what the mask cuts out replaced by the background: (n, 3)."""
    if batch.mask is None:
        return batch.rgb
    mask = batch.mask[:, None]
    return batch.rgb * mask + behind.detach() * (1.0 - mask)
