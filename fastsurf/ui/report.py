"""What `fastsurf info` prints: the facts of info.report as a table, with a picture of where the cameras stand."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LABEL = 11  # columns
ARROWS = "→↗↑↖←↙↓↘"
COLORS = {"broken": "\x1b[1;31m", "doubtful": "\x1b[33m", "note": "\x1b[2m"}


def report_lines(facts: Mapping[str, Any], color: bool = False) -> list[str]:
    """Lines of text, about 100 columns wide at most but for paths and remarks; findings after the map, the worst first.

    Args:
        color: severities by ANSI colours.
    """
    box, ring = facts["box"], facts["ring"]
    masks = "none" if facts["masks"] is None else f"the object fills {facts['masks']['object_share']:.0%} of a photograph"
    shares = f"{facts['train']} to learn from" + (f", {facts['test']} held out" if facts["test"] else "")
    reach = f"{ring['nearest']:.2f} to {ring['furthest']:.2f}"
    rows = [
        ("scene", facts["path"]),
        ("format", facts["format"]),
        ("images", f"{facts['images']} of {_counted(facts['sizes'])}: {shares}; {facts['megabytes']:g} MiB"),
        ("cameras", f"{facts['cameras']} ({_counted(facts['camera_models'])})"),
        ("masks", masks),
        ("points", f"{facts['points']:,} sparse points" if facts["points"] else "none"),
        ("box", f"centre {_vector(box['center'])}, radius {box['radius']:.4g}, from {box['source']}"),
        ("ring", f"{ring['median']:.2f} radii from the centre ({reach}), {ring['degrees']:.0f} degrees wide"),
        ("pixel", f"{facts['pixel']:.3g} on the object, 1/{1 / facts['pixel_share']:.0f} of the box"),
        ("resolution", f"{facts['finest_resolution']} cells along the box at the field's finest level"),
    ]
    if "presets" in facts:
        needs = (f"{e['preset']} {e['minutes']:g} min, {e['megabytes'] / 1000:.1f} GB" for e in facts["presets"])
        rows.append(("on a CPU", "; ".join(needs)))
    lines = [f"{label:<{LABEL}}{text}" for label, text in rows]
    drawn = [line for line in camera_map(facts["views"], box["center"], box["radius"]) if line]
    lines += ["", *(" " * LABEL + line for line in drawn), ""]
    lines += [f"{'input':<{LABEL}}{note}" for note in facts["notes"]]
    lines += [line for finding in facts["findings"] for line in finding_lines(finding, color)]
    if not facts["usable"]:
        return [*lines, f"{'no':<{LABEL}}this can't work as it is: see what is broken"]
    return [*lines, f"{'next':<{LABEL}}{shlex.join(['fastsurf', 'reconstruct', facts['path'], '-o', 'mesh.ply'])}"]


def finding_lines(finding: Mapping[str, str], color: bool = False) -> list[str]:
    """What was found, and under it what to do."""
    label = f"{finding['severity']:<{LABEL}}"
    label = COLORS[finding["severity"]] + label + "\x1b[0m" if color else label
    lines = [label + finding["found"]]
    return [*lines, " " * LABEL + "→ " + finding["fix"]] if finding["fix"] else lines


def camera_map(views: Sequence[Mapping[str, Any]], center: Sequence[float], radius: float, columns: int = 49, rows: int = 19) -> list[str]:
    """Where the views stand round the scene box, looked at along the direction in which they spread least.

    An arrow is a training view and points where it looks, a ring is a held-out one; dots are the scene box.

    Args:
        views: each with center (3,), forward (3,) and split; world units.
    """
    offsets = np.array([view["center"] for view in views]) - np.asarray(center)
    axes = np.linalg.svd(offsets - offsets.mean(0), full_matrices=False)[2][:2]  # (2, 3), the two directions of largest spread
    flat, forward = offsets @ axes.T, np.array([view["forward"] for view in views]) @ axes.T  # (n, 2)
    reach = 1.02 * max(float(np.abs(flat).max()), radius)
    scale = np.array([2.0, -1.0]) * min((columns - 1) / 4, (rows - 1) / 2) / reach  # a cell is twice as high as wide
    middle = np.array([columns - 1, rows - 1]) / 2

    canvas = [[" "] * columns for _ in range(rows)]
    left, bottom = np.ceil(middle - radius * np.abs(scale)).astype(int)
    for row in range(bottom, rows - bottom):
        canvas[row][left : columns - left] = "·" * (columns - 2 * left)
    for view, (column, row), (x, y) in zip(views, np.rint(flat * scale + middle).astype(int), forward, strict=True):
        held_out = view["split"] == "test"
        if not (held_out and canvas[row][column] in ARROWS):
            canvas[row][column] = "o" if held_out else ARROWS[round(math.atan2(y, x) / (math.pi / 4)) % 8]
    return ["".join(line).rstrip() for line in canvas]


def _counted(counts: Mapping[str, int]) -> str:
    """`800x600`, or `800x600 (12), 600x800 (3)` where there are several."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _vector(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
