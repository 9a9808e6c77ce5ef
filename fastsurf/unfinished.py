"""Which pictures of a folder are made, as long as not all are: what was stopped goes on there.

A record in the folder says what they are of; it is gone when the last one is there.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from .files import write_whole

RECORD = "unfinished.json"


class Unfinished:
    """The pictures of a folder.

    Attributes:
        begun: some of these very ones were, and not all were made.
    """

    def __init__(self, folder: Path, about: Sequence[object]) -> None:
        """
        Args:
            about: all that decides what they show, as JSON has it.
        """
        self._file, self._about = folder / RECORD, list(about)
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):
            known = None
        self.begun = isinstance(known, dict) and known.get("about") == self._about and isinstance(known.get("made"), list)
        self._made: list[str] = known["made"] if self.begun else []

    def start(self) -> None:
        """From now on there is a folder."""
        write_whole(self._file, (json.dumps({"about": self._about, "made": self._made}, indent=1) + "\n").encode())

    def has(self, name: str, files: Sequence[Path]) -> bool:
        """Whether a picture is made and nobody took one of its files away."""
        return name in self._made and all(file.is_file() for file in files)

    def add(self, name: str) -> None:
        """It is made now."""
        self._made = [*(other for other in self._made if other != name), name]
        self.start()

    def finish(self) -> None:
        """All are."""
        self._file.unlink(missing_ok=True)
