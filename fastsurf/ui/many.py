"""Many scenes on the live screen, a line each; those at work first where there is no room for all."""

from collections import Counter
from collections.abc import Mapping

from rich.segment import Segment
from rich.style import Style

from ..hooks import SceneState
from .plain import duration

NAME, BAR = 24, 16  # columns that a name gets at most, and its bar
ENDS = {"done": ("✓", Style(color="green")), "kept": ("✓", Style(dim=True)), "stopped": ("■", Style(color="yellow")),
        "failed": ("✗", Style(color="red"))}  # fmt: skip
PLAIN, DIM, CYAN, GREEN = Style(), Style(dim=True), Style(color="cyan"), Style(color="green")
STEP = 1 / 3  # of a scene: its training counts for the middle one of read, train, mesh
BEFORE = {"train": STEP, "mesh": 2 * STEP}

Line = list[Segment]


def finished_share(scenes: Mapping[str, SceneState]) -> float:
    """In [0, 1], of all."""
    return sum(1.0 if s.state in ENDS else BEFORE.get(s.state, 0.0) + STEP * s.done for s in scenes.values()) / max(len(scenes), 1)


def head_lines(scenes: Mapping[str, SceneState], inner: int, stopping: bool) -> list[Line]:
    """How many are where, and a bar over all."""
    count = Counter(s.state if s.state in (*ENDS, "waiting") else "at work" for s in scenes.values())
    order = [state for state in ("at work", "waiting", *ENDS) if count[state]]
    counts = [Segment("   ".join(f"{count[state]} {state}" for state in order), Style(bold=True))]
    share = finished_share(scenes)
    words = f"  {share:4.0%}" + ("  finishing early" if stopping else "")
    columns = max(8, inner - len(words))
    full = round(share * columns)
    return [counts, [Segment("━" * full, GREEN), Segment("─" * (columns - full), DIM), Segment(words, PLAIN)], []]


def scene_lines(scenes: Mapping[str, SceneState], room: int) -> list[Line]:
    """At most `room` lines, in the order of the scenes."""
    def urgency(name: str) -> int:
        state = scenes[name].state
        return {"failed": 1, "stopped": 2, "waiting": 3, "done": 4, "kept": 5}.get(state, 0)

    shown = set(sorted(scenes, key=urgency)[: room if len(scenes) <= room else max(room - 1, 0)])
    width = min(NAME, max((len(name) for name in scenes), default=0))
    lines = [_scene_line(scenes[name], width) for name in scenes if name in shown]
    return lines if len(shown) == len(scenes) else [*lines, [Segment(f"and {len(scenes) - len(shown)} more", DIM)]]


def _scene_line(scene: SceneState, width: int) -> Line:
    name = scene.name if len(scene.name) <= width else scene.name[: width - 1] + "…"
    if scene.state in ENDS:
        sign, style = ENDS[scene.state]
        took = f"  {duration(scene.seconds)}" if scene.seconds else ""
        return [Segment(f"{sign} {name:<{width}}  {scene.state:<8}{took}  ", style), Segment(scene.detail, PLAIN)]
    if scene.state == "waiting":
        return [Segment(f"○ {name:<{width}}  waiting", DIM)]
    full = round(min(max(scene.done, 0.0), 1.0) * BAR)
    left = f"  {duration(scene.seconds_left)} left" if scene.seconds_left is not None else ""
    return [
        Segment(f"▶ {name:<{width}}  {scene.state:<8}  ", CYAN), Segment("━" * full, GREEN), Segment("─" * (BAR - full), DIM),
        Segment(f" {scene.done:4.0%}{left}  {scene.detail}", PLAIN),
    ]  # fmt: skip
