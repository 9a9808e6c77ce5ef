"""Photographs with known cameras in, a solid coloured surface mesh out."""

__version__ = "0.1.0"
