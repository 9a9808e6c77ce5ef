"""Adam with a warm-up and an exponential decay, on whatever kernel the backend has."""

import torch
from torch import Tensor

from .backends import Backend
from .config import TrainConfig
from .model import Model

BETAS = (0.9, 0.99)
POSES_FROM = 0.2  # progress: earlier there is no shape yet to align photographs with, and poses went astray
EPSILON = 1e-15  # as instant-ngp: table entries that are seldom touched still move


class Optimizer:
    """Moments and step count of every parameter; hash tables and embeddings learn at `rate_grid`, corrections of cameras at `rate_cameras`,
    matrices at `rate_mlp`."""

    def __init__(self, model: Model, config: TrainConfig, backend: Backend):
        self.config, self.backend = config, backend
        self.parameters = dict(model.named_parameters())
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.count = 0

    def step(self, progress: float) -> None:
        """One step on the gradients that are there, which are then dropped."""
        self.count += 1
        c = self.config
        factor = min(self.count / max(c.warmup, 1), 1.0) * c.final_rate**progress
        for name, p in self.parameters.items():
            if p.grad is None:
                continue
            pose = name.startswith("corrections.")
            if pose and progress < POSES_FROM:
                p.grad = None
                continue
            rate = factor * (c.rate_grid if name.endswith("table") else c.rate_cameras if pose else c.rate_mlp)
            self.backend.adam_(p.data, p.grad, self.first[name], self.second[name], self.count, rate, BETAS, EPSILON)
            p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The moments by name, for a checkpoint."""
        return {f"adam.{kind}.{name}": t for kind, held in (("first", self.first), ("second", self.second)) for name, t in held.items()}
