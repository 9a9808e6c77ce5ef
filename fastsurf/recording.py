"""Work on a GPU that is recorded once and replayed without Python (a CUDA graph).

A training step is some 400 small kernels: started one by one from Python, the GPU waits for them most of the time.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # plain calls before the recording: kernels are compiled, caches filled


class Recording:
    """`work()`, which leaves gradients on parameters and returns numbers, a small tensor.

    Every call draws fresh random numbers from `generator` and reads the tensors that `work` read as they are then; whatever else `work`
    computes with is as it was when it was recorded. If a number is not finite, the gradients are zero.

    A call returns before the GPU is done, and with the numbers of the call before (the first call with its own), so that the GPU
    has the next call's work when it ends this one's.
    """

    def __init__(self, work: Callable[[], Tensor], parameters: Sequence[torch.nn.Parameter], generator: torch.Generator):
        """
        Raises:
            RuntimeError: the work can't be recorded.
        """
        self._parameters = parameters
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        stream = torch.cuda.Stream(generator.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(generator.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._guarded(work)
            torch.cuda.synchronize()
            self._drop_gradients()
            with torch.cuda.graph(self._graph, stream=stream):
                self._numbers = self._guarded(work)
        torch.cuda.current_stream(generator.device).wait_stream(stream)
        self._gradients = [p.grad for p in parameters]
        self._drop_gradients()
        self._arrivals = [self._arrival(), self._arrival()]
        self._calls = 0

    def __call__(self) -> Tensor:
        self._graph.replay()
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = gradient
        numbers, arrived = self._arrivals[self._calls % 2]
        numbers.copy_(self._numbers, non_blocking=True)
        arrived.record()
        if self._calls:
            numbers, arrived = self._arrivals[(self._calls - 1) % 2]
        self._calls += 1
        arrived.synchronize()
        return numbers

    def _arrival(self) -> tuple[Tensor, torch.cuda.Event]:
        """A place on the host for the numbers, and when they have come."""
        return torch.empty_like(self._numbers, device="cpu").pin_memory(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    def _guarded(self, work: Callable[[], Tensor]) -> Tensor:
        self._drop_gradients()
        numbers = work()
        bad = ~torch.isfinite(numbers.sum())
        for p in self._parameters:
            if p.grad is not None:
                p.grad.masked_fill_(bad, 0.0)
        return numbers

    def _drop_gradients(self) -> None:
        for p in self._parameters:
            p.grad = None
