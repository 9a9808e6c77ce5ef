"""Scores as tables: Markdown for reports, and columns of text for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = [  # heading, key, format
    ("Chamfer %", "chamfer_pct", ".4f"), ("px", "chamfer_px", ".3f"), ("F@0.5 %", "f_score_05", ".4f"), ("F@1 %", "f_score", ".4f"),
    ("normals °", "normal_error_deg", ".2f"), ("offset px", "offset_px", "+.3f"), ("DTU acc.", "dtu_accuracy", ".3f"),
    ("DTU compl.", "dtu_completeness", ".3f"), ("DTU overall", "dtu_overall", ".3f"), ("PSNR", "psnr", ".2f"),
    ("PSNR object", "psnr_object", ".2f"), ("SSIM", "ssim", ".4f"), ("mask IoU", "mask_iou", ".4f"), ("parts", "components", ".0f"),
    ("watertight", "watertight", ""), ("faces", "faces", ".0f"), ("read s", "read_seconds", ".1f"), ("train s", "train_seconds", ".1f"),
    ("mesh s", "mesh_seconds", ".1f"), ("wall s", "wall_seconds", ".1f"), ("CPU s", "cpu_seconds", ".1f"), ("MB", "peak_mb", ".0f"),
    ("steps", "steps", ".0f"), ("M samples", "samples_millions", ".2f"),
]  # fmt: skip


def in_brief(scores: Mapping[str, Any]) -> str:
    """The first things to know of a reconstruction, in a line."""
    facts = [("Chamfer {} %", "chamfer_pct", ".4f"), ("F@0.5 % {}", "f_score_05", ".3f"), ("normals {}°", "normal_error_deg", ".1f"),
             ("PSNR {}", "psnr", ".2f"), ("made in {} s", "wall_seconds", ".0f")]  # fmt: skip
    return ", ".join(words.format(format(scores[key], form)) for words, key, form in facts if scores.get(key) is not None)


def text(value: Any, form: str) -> str:
    """A number, yes or no, or a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else f"{value:{form}}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; short rows are filled up."""
    full = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *full]]


def escaped(words: str) -> str:
    """In a cell of Markdown."""
    return words.replace("|", "\\|")


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text, columns as wide as they need to be, the first one flush left and the others flush right."""
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) for row in [heads, *rows]]
