"""A run on disk: everything that training needs to go on, in one safetensors file (never pickle), replaced whole or not at all."""

import difflib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .appearance import MEAN
from .config import Config, check, from_dict, to_dict
from .errors import BackendError, CheckpointError, UsageError
from .files import write_whole
from .guard import parse_json, read_json
from .model import Model
from .scene import Scene
from .training import Training

FORMAT = 1  # of the file; raised when an old file can no longer be read as it is
MOST_HEADER = 1 << 26  # bytes
SAME_BOX = 1e-3  # radii that the scene box of a resumed run may differ by


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself."""

    config: Config
    scene: str  # folder it was made from
    scene_format: str
    center: tuple[float, float, float]  # of the scene box, in the input's own frame
    radius: float
    background: str
    device: str  # cpu or cuda: where its random numbers came from
    step: int
    progress: float
    seconds: float
    squared_error: float
    photographs: tuple[str, ...]  # names of all, in the scene's order
    updates: int = 0  # of the parameters: the steps that were not skipped
    skipped: int = 0  # the others
    besides: float = 0.0  # this and the next two: see `Training`
    meshed: bool = False
    in_a_row: int = 0

    def photograph(self, name: str) -> int:
        """The index of the photograph whose appearance is wanted, by its name with or without folders and suffix; -1 for mean.

        Raises:
            UsageError: it is none of this run's, or the run has no appearances.
        """
        if not self.config.color.appearance:
            raise UsageError("the run has one appearance for all photographs: reconstruct with --method wild, or --set color.appearance=8")
        if name == "mean":
            return MEAN
        whole = [i for i, known in enumerate(self.photographs) if name in (known, Path(known).name, Path(known).stem)]
        if len(whole) != 1:
            (near,) = difflib.get_close_matches(name, self.photographs, n=1, cutoff=0.0)
            found = "several photographs are" if whole else "no photograph is"
            raise UsageError(f"--appearance: {found} named {name!r}; want mean, or a photograph such as {near}")
        return whole[0]


def save_checkpoint(path: Path, run: Training) -> None:
    """Write the whole state of a training run.

    Raises:
        BackendError: some of it is not finite; the checkpoint that is there stays.
        OSError: it can't be written, likewise.
    """
    header = _about(run.scene, run.config, run.model.background_kind, run.backend.device.type) | {
        "levels": [[level.scale, level.resolution, level.offset, level.size] for level in run.model.field.levels],
        "step": run.step,
        "updates": run.optimizer.count,
        "skipped": run.skipped,
        "in_a_row": run.in_a_row,
        "progress": run.progress(),
        "seconds": run.seconds,
        "besides": run.besides,
        "meshed": run.meshed,
        "squared_error": run.squared_error,
    }
    tensors = {f"model.{name}": t.contiguous() for name, t in run.model.state_dict().items()}
    tensors |= run.optimizer.tensors()
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not math.isfinite(float(t.sum()))]
    if bad:
        raise BackendError(f"training went wrong before step {run.step}: {', '.join(bad)} not finite, so no checkpoint was written of it")
    tensors["generator"] = run.generator.get_state()
    for kept in (run.patches, run.disputes):
        tensors |= {} if kept is None else kept.tensors()
    write_whole(path, save(tensors, metadata={"fastsurf": json.dumps(header)}))


def save_begun(path: Path, scene: Scene, config: Config, background: str, device: str) -> None:
    """Write what a checkpoint will say about itself, as JSON, for who looks at a run that has saved nothing yet.

    Raises:
        OSError: it can't be written.
    """
    tree = _about(scene, config, background, device) | {"step": 0, "progress": 0.0, "seconds": 0.0, "squared_error": 1.0}
    write_whole(path, (json.dumps(tree, indent=1) + "\n").encode())


def _about(scene: Scene, config: Config, background: str, device: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "config": to_dict(config),
        "scene": str(scene.capture.path.resolve()),
        "scene_format": scene.capture.format,
        "center": [float(c) for c in scene.center],
        "radius": float(scene.radius),
        "background": background,
        "device": device,
        "photographs": [view.name for view in scene.capture.views],
    }


def read_begun(path: Path) -> Header:
    """What `save_begun` has written.

    Raises:
        CheckpointError: no file, not one of ours, damaged, or of another format number.
    """
    return _header(read_json(path, CheckpointError), path)


def read_header(path: Path) -> Header:
    """What is in a checkpoint.

    Raises:
        CheckpointError: no file, not a checkpoint of ours, damaged, or of another format number.
    """
    text = _metadata(path).get("fastsurf")
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not one of fastsurf's")
    return _header(parse_json(text, str(path), CheckpointError), path)


def _header(tree: Any, path: Path) -> Header:
    try:
        if tree["format"] != FORMAT:
            found = f"checkpoint format {tree['format']}, this version reads {FORMAT}"
            raise CheckpointError(f"{path}: {found}: reconstruct again, or use the version that wrote it")
        x, y, z = tree["center"]
        config = from_dict(tree["config"], str(path))
        check(config)
        header = Header(
            config, str(tree["scene"]), str(tree["scene_format"]), (float(x), float(y), float(z)), float(tree["radius"]),
            str(tree["background"]), str(tree.get("device", "cpu")), int(tree["step"]), float(tree["progress"]), float(tree["seconds"]),
            float(tree["squared_error"]), tuple(map(str, tree.get("photographs", ()))),
            int(tree.get("updates", tree["step"])), int(tree.get("skipped", 0)),
            float(tree.get("besides", 0.0)), bool(tree.get("meshed", False)), int(tree.get("in_a_row", 0)),
        )
        if not (np.isfinite(header.center).all() and 0 < header.radius < np.inf and 0 <= header.progress <= 1 and header.step >= 0):
            raise ValueError(f"centre {header.center}, radius {header.radius:g}, progress {header.progress:g}, step {header.step}")
        if not (0 <= header.seconds < np.inf and 0 <= header.besides < np.inf):
            raise ValueError(f"{header.seconds:g} and {header.besides:g} seconds")
        return header
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:
        raise CheckpointError(f"{path}: damaged ({type(e).__name__}: {e})") from None


def _metadata(path: Path) -> dict[str, str]:
    """The free part of a safetensors header: 8 bytes of length, then JSON."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: want the run folder of a reconstruction that has saved at least once")
    try:
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > min(os.fstat(f.fileno()).st_size, MOST_HEADER):
                raise ValueError("the header is longer than the file, or than any of ours")
            text = f.read(length)
        return {str(name): str(value) for name, value in parse_json(text, str(path), CheckpointError).get("__metadata__", {}).items()}
    except (OSError, ValueError, AttributeError) as e:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({e})") from None


def load_model(path: Path, model: Model) -> dict[str, Tensor]:
    """Fill a model with a checkpoint's parameters and grid; returns all tensors of the file.

    Raises:
        CheckpointError: the tensors don't fit the model.
    """
    try:
        tensors = load(path.read_bytes())  # read once: a running reconstruction may replace the file at any moment
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise CheckpointError(f"{path}: damaged ({e})") from None
    try:
        model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    except RuntimeError as e:
        raise CheckpointError(f"{path}: does not fit the configuration ({str(e).splitlines()[-1].strip()})") from None
    return tensors


def resume(path: Path, run: Training) -> None:
    """Put a training run where the checkpoint left it.

    Raises:
        UsageError: it was made from other photographs, or with others held out.
        CheckpointError: see `read_header` and `load_model`.
    """
    header = read_header(path)
    _check_same(header, run)
    tensors = load_model(path, run.model)
    try:
        for kind, held in (("first", run.optimizer.first), ("second", run.optimizer.second)):
            for name, t in held.items():
                t.copy_(tensors[f"adam.{kind}.{name}"])
        for kept in (run.patches, run.disputes):
            for name, t in ({} if kept is None else kept.tensors()).items():
                if name in tensors:  # else they begin anew
                    t.copy_(tensors[name])
        state = tensors["generator"].to(torch.uint8)
        if header.device == run.backend.device.type:
            run.generator.set_state(state)
    except (KeyError, RuntimeError, TypeError) as e:
        raise CheckpointError(f"{path}: does not fit the configuration ({type(e).__name__}: {e})") from None
    if header.device != run.backend.device.type:  # a state of another kind of generator: go on with other numbers
        run.generator.manual_seed(run.config.train.seed + header.step)
    run.step, run.skipped, run.in_a_row, run.optimizer.count = header.step, header.skipped, header.in_a_row, header.updates
    run.seconds, run.squared_error = header.seconds, header.squared_error
    run.besides, run.meshed = header.besides, header.meshed


def _check_same(header: Header, run: Training) -> None:
    """What was learned holds in its own scene box alone, and scores count only for photographs that were never learned from."""
    scene = run.scene
    apart = float(np.abs(scene.center - header.center).max() + abs(scene.radius - header.radius)) / header.radius
    if apart > SAME_BOX:
        raise UsageError(
            f"the run was made in another scene box (centre {np.round(header.center, 4).tolist()}, radius {header.radius:.4g}; now "
            f"{np.round(scene.center, 4).tolist()}, {scene.radius:.4g}): resume it with its own photographs and masks, or start a new run"
        )
    names = tuple(view.name for view in scene.capture.views)
    if header.photographs and header.photographs != names:
        raise UsageError(
            f"the run was made from {len(header.photographs)} photographs, and the scene now holds {len(names)}, or others: resume it with "
            "its own, or start a new run"
        )
    for name, then, now in (
        ("the method", header.config.method, run.config.method),
        ("train.seed", header.config.train.seed, run.config.train.seed),
        ("scene.holdout", header.config.scene.holdout, run.config.scene.holdout),
        ("the background", header.background, run.model.background_kind),
    ):
        if then != now:
            raise UsageError(f"the run was made with {name} {then}, now it is {now}: resume it as it was, or start a new run")
