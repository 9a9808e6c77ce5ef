"""Captures of a ball, made on the spot: cameras all round, pictures that say in red and green which pixel each one is."""

from dataclasses import replace

import numpy as np
from PIL import Image

from fastsurf.cameras import Camera, Capture, View, unproject

PINHOLE = Camera("PINHOLE", 96, 72, (110.0, 112.0, 49.3, 35.1))
LENSES = [
    PINHOLE,
    Camera("SIMPLE_RADIAL", 96, 72, (110.0, 48.0, 36.0, -0.12)),
    Camera("OPENCV", 96, 72, (110.0, 112.0, 49.3, 35.1, 0.08, -0.15, 0.002, -0.001)),
    Camera("OPENCV_FISHEYE", 96, 72, (60.0, 60.0, 48.0, 36.0, 0.02, -0.01, 0.003, 0.0)),
]


def looking_at(center, target):
    """c2w (3, 4), OpenCV axes."""
    forward = np.subtract(target, center) / np.linalg.norm(np.subtract(target, center))
    right = np.cross(forward, [0.1, 0.2, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, center], axis=1)


def sphere_of_cameras(n, target=(0.0, 0.0, 0.0), distance=4.0):
    """Poses (n, 3, 4) spread over a sphere round the target."""
    k = np.arange(n) + 0.5
    z, turn = 1 - 2 * k / n, k * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - z * z)
    centers = np.array(target) + distance * np.stack([flat * np.cos(turn), flat * np.sin(turn), z], -1)
    return [looking_at(center, target) for center in centers]


def ball_mask(view, center, radius):
    """(h, w) bool, where the ball is seen."""
    w, h = view.camera.width, view.camera.height
    xy = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1).reshape(-1, 2)
    directions = np.concatenate([unproject(view.camera, xy), np.ones((len(xy), 1))], -1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    local = (np.array(center) - view.center) @ view.c2w[:, :3]
    along = directions @ local
    return ((along > 0) & (local @ local - along**2 < radius**2)).reshape(h, w)


def ball(folder, n=12, cameras=(PINHOLE,), center=(0.0, 0.0, 0.0), radius=1.0, masks=True, distance=4.0):
    """A capture of a ball whose alpha is the mask. Pixel (u, v) of view i has colour (u, v, i)."""
    views = []
    for i, c2w in enumerate(sphere_of_cameras(n, center, distance)):
        view = View(f"{i:03d}.png", folder / f"{i:03d}.png", None, cameras[i % len(cameras)], c2w)
        mask = ball_mask(view, center, radius) if masks else np.ones((view.camera.height, view.camera.width), bool)
        save(view, mask, i, alpha=masks)
        views.append(view)
    return Capture(folder, "ball", tuple(views), alpha_masks=masks)


def save(view, mask, blue, alpha=True):
    v, u = np.mgrid[: view.camera.height, : view.camera.width]
    pixels = np.stack([u, v, np.full_like(u, blue), 255 * mask], -1).astype(np.uint8)
    Image.fromarray(pixels if alpha else np.ascontiguousarray(pixels[..., :3])).save(view.image)


def moved(capture, scale, shift):
    """The same capture in another world: x -> scale x + shift."""
    views = [replace(v, c2w=np.concatenate([v.c2w[:, :3], (scale * v.center + shift)[:, None]], 1)) for v in capture.views]
    points = None if capture.points is None else scale * capture.points + shift
    return replace(capture, views=tuple(views), points=points)
