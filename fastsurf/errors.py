"""What can go wrong, each with the exit code the command line gives it.

Every message says in one line what was wanted, what was found and what to do.
"""

LONGEST = 2000  # characters of a message; values from a file may be of any length


def one_line(text: str) -> str:
    """The text without line breaks and without anything that a terminal would obey: names and values come from other people's files."""
    shown = "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode() for c in text[: 2 * LONGEST])
    line = " ".join(shown.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


class FastsurfError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(FastsurfError):
    """The request itself is wrong: an unknown option, an output that already exists."""

    exit_code = 2


class ConfigError(UsageError):
    """An unknown or ill-typed configuration key."""


class SceneError(FastsurfError):
    """The photographs or cameras can't be used."""

    exit_code = 3


class CheckpointError(FastsurfError):
    """A run folder or checkpoint can't be used."""

    exit_code = 3


class MeshError(FastsurfError):
    """There is no surface to write, and why."""

    exit_code = 3


class ResourceError(FastsurfError):
    """The machine has no more to give: disk or memory. What was saved before is whole."""

    exit_code = 1


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory for something: Python's, NumPy's, torch's on a CPU or a GPU."""
    if isinstance(error, MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


class BackendError(FastsurfError):
    """The chosen backend can't run here, or produced numbers that are not finite."""

    exit_code = 4
