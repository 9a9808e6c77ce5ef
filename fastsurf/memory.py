"""Work on many rows in parts that fit into memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import lacks_memory
from .hooks import Hook, Note

T = TypeVar("T")

LEAST = 256  # rows; what doesn't fit with so few doesn't fit


def in_parts(work: Callable[[slice], T], n: int, most: int, events: Hook) -> Iterator[T]:
    """`work` on one slice of n rows after the other, `most` at once; where there is no memory for that, on half as many.

    Args:
        events: is told of each halving.

    Raises:
        what `work` raises; MemoryError or its like once LEAST rows are too many.
    """
    start = 0
    while start < n:
        try:
            done = work(slice(start, min(start + most, n)))
        except (MemoryError, RuntimeError) as e:
            if not lacks_memory(e) or most // 2 < LEAST:
                raise
            most //= 2
            events(Note(f"memory is short: from now on {most} points at once"))
            continue
        yield done
        start += most
