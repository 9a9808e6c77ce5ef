"""Work on a GPU that is recorded once and replayed without Python (a CUDA graph).

A training step is some 400 small kernels: started one by one from Python, the GPU waits for them most of the time.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # plain calls before the recording: kernels are compiled, caches filled


class Recording:
    """`work()`, which returns a tensor and leaves gradients on parameters.

    Every call draws fresh random numbers from `generator` and reads the tensors that `work` read as they are then; whatever else `work`
    computes with is as it was when it was recorded.
    """

    def __init__(self, work: Callable[[], Tensor], parameters: Sequence[torch.nn.Parameter], generator: torch.Generator):
        """
        Raises:
            RuntimeError: the work can't be recorded.
        """
        self.parameters = parameters
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        stream = torch.cuda.Stream(generator.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(generator.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._drop_gradients()
                work()
            self._drop_gradients()
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph, stream=stream):
                self._result = work()
        torch.cuda.current_stream(generator.device).wait_stream(stream)
        self._gradients = [p.grad for p in parameters]
        self._drop_gradients()

    def __call__(self) -> Tensor:
        self._graph.replay()
        for p, gradient in zip(self.parameters, self._gradients, strict=True):
            p.grad = gradient
        return self._result

    def _drop_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None
