"""Photographs of the corner of a room with papered walls, of known cameras: what structure from motion is good at."""

import numpy as np
from captures import looking_at
from PIL import Image

from fastsurf.cameras import Camera, View, unproject

TARGET = (0.7, 0.7, 0.7)
CAMERA = Camera("PINHOLE", 240, 180, (255.0, 255.0, 120.0, 90.0))


def wallpaper(seed):
    """Blots of every size, (512, 512, 3) uint8."""
    rng = np.random.default_rng(seed)
    paper = np.zeros((512, 512, 3))
    for cells in (16, 32, 64, 128):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
        paper += np.asarray(noise, np.float64)
    return np.clip((paper / 4 - 128) * 2 + 128, 0, 255).astype(np.uint8)


PAPERS = [wallpaper(seed) for seed in range(3)]  # on the walls x = 0, y = 0 and z = 0, two units wide


def photograph(view):
    """(h, w, 3) uint8; the walls' end is grey."""
    w, h = view.camera.width, view.camera.height
    xy = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1).reshape(-1, 2)
    directions = np.concatenate([unproject(view.camera, xy), np.ones((len(xy), 1))], -1) @ view.c2w[:, :3].T
    with np.errstate(divide="ignore"):
        depth = -view.center / directions  # (n, 3), to each wall
    wall = np.where(depth > 0, depth, np.inf).argmin(1)
    points = view.center + np.take_along_axis(depth, wall[:, None], 1) * directions
    pixels = np.full((len(xy), 3), 128, np.uint8)
    for axis, paper in enumerate(PAPERS):
        at = np.rint(np.delete(points, axis, 1) * 255).astype(int)
        seen = (wall == axis) & (at >= 0).all(1) & (at < 512).all(1)
        pixels[seen] = paper[at[seen, 0], at[seen, 1]]
    return pixels.reshape(h, w, 3)


def walk(folder, n=8, names="{:03d}.png"):
    """Write n photographs, a few steps apart, into a folder; returns their views."""
    folder.mkdir(parents=True, exist_ok=True)
    views = []
    for k in range(n):
        turn, rise = np.radians(20 + 50 * k / n), np.radians(25 + 15 * (k % 3))
        center = np.array(TARGET) + 2.4 * np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
        name = names.format(k)
        views.append(View(name, folder / name, None, CAMERA, looking_at(center, TARGET)))
        Image.fromarray(photograph(views[-1])).save(views[-1].image)
    return views
