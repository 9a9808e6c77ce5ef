"""When a run of so many steps will end.

Early steps take longer, since the interval is wide and little of the grid is known to be empty: a step takes
1 + EXTRA exp(-decay progress), in units of what it comes to, where `decay` is the interval's (sampling.py). What happens once, as a first
mesh does, is no part of the pace. How often that is right within a fifth, `tools/benchmark.py forecast RUN...` tells of logs.
"""

import bisect
import math

EXTRA = 0.7  # of the final time of a step, that the first ones take more: over 208 runs of all kinds
WINDOW = 0.25  # of the steps made, the latest, tell how fast this run is
APART = 0.004  # of progress, between two that are remembered


class Forecast:
    """Remembers how far a run was when.

    Args:
        decay: of the interval's half-width, for all of `progress` in [0, 1].
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._progress: list[float] = []
        self._seconds: list[float] = []

    def __call__(self, progress: float, seconds: float) -> float:
        """Seconds left; infinite until two moments are known. Called after every step, with what was done by then."""
        if not self._progress or progress >= self._progress[-1] + APART:
            self._progress.append(progress)
            self._seconds.append(seconds)
        since = max(bisect.bisect_right(self._progress, progress * (1.0 - WINDOW)) - 1, 0)
        work = self._work(progress) - self._work(self._progress[since])
        if work <= 0.0:
            return 0.0 if progress >= 1.0 else math.inf
        return (seconds - self._seconds[since]) / work * (self._work(1.0) - self._work(progress))

    def _work(self, progress: float) -> float:
        """All steps until then, in units of the last one's time."""
        wide = -math.expm1(-self._decay * progress) / self._decay if self._decay != 0.0 else progress
        return progress + EXTRA * wide
