"""The events of a reconstruction that never was, for tests of what shows them; run it to look at the screen."""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastsurf.hooks import Event, MeshProgress, Note, PhaseDone, PhaseStarted, Preview, Saved, TrainState


def fake_events(steps: int = 100) -> Iterator[Event]:
    """read, `steps` training steps with a preview every tenth, mesh."""
    yield PhaseStarted("read", "fox")
    yield Note("intrinsics were for 1600x1200, rescaled to 800x600")
    yield PhaseDone("read", 2.0, "48 photographs")
    yield PhaseStarted("train", "native: AVX2, 2 threads")
    for step in range(1, steps + 1):
        yield fake_step(step, step / steps)
        if step % 10 == 0:
            yield fake_preview(step / steps)
        if step == steps // 2:
            yield Saved("checkpoint", Path("fox.run/checkpoint.safetensors"))
    yield PhaseDone("train", 123.0, f"{steps} steps")
    yield PhaseStarted("mesh")
    for part in range(1, 11):
        yield MeshProgress(part / 10, "surface")
    yield PhaseDone("mesh", 9.0, "118,204 faces, closed")
    yield Saved("mesh", Path("fox.ply"))


def fake_step(step: int, progress: float) -> TrainState:
    """Curves of the usual shape."""
    loss = 0.2 * math.exp(-4 * progress) + 0.01 + 0.002 * math.sin(step)
    return TrainState(
        step=step, progress=progress, seconds=120 * progress, seconds_left=120 * (1 - progress), loss=loss, psnr=-20 * math.log10(loss),
        losses={"color": loss}, half_width=max(0.5 * math.exp(-4 * progress), 0.015), occupied=0.5 * math.exp(-3 * progress),
        hit=progress, samples_per_second=4e5 + 1e4 * math.sin(step),
    )


def fake_preview(progress: float, width: int = 72, height: int = 96) -> Preview:
    """A shaded ball that grows, and its normals."""
    y, x = np.mgrid[:height, :width]
    x, y = (x - width / 2) / width * 2.4, (y - height / 2) / width * 2.4
    inside = x * x + y * y < (0.5 + 0.5 * progress) ** 2
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    normal = np.where(inside[..., None], np.stack([x, -y, z], -1) * 0.5 + 0.5, 1.0)
    light = np.clip(0.3 + 0.7 * (0.4 * x - 0.5 * y + 0.76 * z), 0, 1)
    rgb = np.where(inside[..., None], light[..., None] * np.array([0.9, 0.5, 0.25]), 1.0)
    return Preview("0031.jpg", *((picture * 255).astype(np.uint8) for picture in (rgb, normal, rgb)))


def main() -> None:
    """`python tests/fake_events.py [seconds]`: play the events on this terminal; Ctrl-C ends it early."""
    from fastsurf.ui import open_display

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    start = time.process_time()
    with open_display(sys.stdout, "fox", ("read", "train", "mesh"), lambda: False) as display:
        for event in fake_events(400):
            display(event)
            time.sleep(seconds / 450)
    print(f"{time.process_time() - start:.2f} s of CPU")


if __name__ == "__main__":
    main()
