"""What `fastsurf info` prints: the facts of info.report as a table, with a picture of where the cameras stand."""

from collections.abc import Mapping, Sequence
from typing import Any

LABEL = 11  # columns


def report_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lines of text, about 100 columns wide at most but for paths and remarks."""
    box, distance = facts["box"], facts["camera_distance"]
    masks = "none" if facts["masks"] is None else f"the object fills {facts['masks']['object_share']:.0%} of a photograph"
    shares = f"{facts['train']} to learn from" + (f", {facts['test']} held out" if facts["test"] else "")
    rows = [
        ("scene", facts["path"]),
        ("format", facts["format"]),
        ("images", f"{facts['images']} of {_counted(facts['sizes'])}: {shares}; {facts['megabytes']:g} MiB"),
        ("cameras", f"{facts['cameras']} ({_counted(facts['camera_models'])})"),
        ("masks", masks),
        ("points", f"{facts['points']:,} sparse points" if facts["points"] else "none"),
        ("box", f"centre {_vector(box['center'])}, radius {box['radius']:.4g}, from {box['source']}"),
        ("distance", f"cameras are {distance['median']:.2f} radii from the centre ({distance['min']:.2f} to {distance['max']:.2f})"),
        ("pixel", f"{facts['pixel']:.3g} on the object, 1/{1 / facts['pixel_share']:.0f} of the box"),
        ("resolution", f"up to {facts['suggested_finest_resolution']} cells along the box can be seen"),
    ]
    lines = [f"{label:<{LABEL}}{text}" for label, text in rows]
    lines += ["", *_camera_lines(facts["camera_table"]), ""]
    lines += [f"{'note':<{LABEL}}{note}" for note in facts["notes"]]
    lines += [f"{'warning':<{LABEL}}{warning}" for warning in facts["warnings"]]
    verdict = f"fastsurf reconstruct {facts['path']} -o mesh.ply" if facts["usable"] else "this can't work as it is: see the warnings"
    return [*lines, f"{'next' if facts['usable'] else 'no':<{LABEL}}{verdict}"]


def _camera_lines(table: Mapping[str, Any]) -> list[str]:
    """How many cameras look from where: a row for each band of elevation, a column for each sector round the up axis."""
    edges, sectors = table["elevation_edges"], table["sectors"]
    azimuths = "".join(f"{360 * k // sectors:>4}" for k in range(sectors))
    lines = [f"{'seen from':<{LABEL}}{'elevation':<14}{azimuths}  degrees round the up axis"]
    for high, low, counts in zip(edges[:-1], edges[1:], table["counts"], strict=True):
        lines.append(f"{'':<{LABEL}}{f'{low:+d} to {high:+d}':<14}" + "".join(f"{count or '·':>4}" for count in counts))
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    """`800x600`, or `800x600 (12), 600x800 (3)` where there are several."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _vector(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
