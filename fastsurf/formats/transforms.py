"""transforms.json of NeRF, instant-ngp and nerfstudio; transforms_train.json with a held-out transforms_test.json.

`transform_matrix` is camera-to-world with OpenGL axes (x right, y up, z backwards), intrinsics are pixels with centres at half integers.
The world is that of `transform_matrix`: an `applied_transform` that nerfstudio noted down has already happened to it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cameras import ONE_FOCAL, Camera, Capture, View
from ..errors import SceneError
from ..guard import MOST_NUMBER, read_json
from . import colmap
from .checks import find_image, finish, image_size, named, note_missing

WANTED = "transforms.json or transforms_train.json"
HELD_OUT = ("transforms_test.json", "transforms_val.json")
PERSPECTIVE = ("", "OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "PERSPECTIVE")
FISHEYE = ("OPENCV_FISHEYE", "FISHEYE")
DISTORTION = {
    "OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}  # fmt: skip # in the order of a camera's parameters; other models come back as an error that names them
SAME_PLACE = 1e-3  # of the cameras' extent


def find(folder: Path) -> Path | None:
    """The file with the training cameras."""
    known = (folder / "transforms_train.json", folder / "transforms.json", *sorted(folder.glob("transforms*.json")))
    return next((file for file in known if file.is_file() and file.name not in HELD_OUT), None)


def load(scene: Path, file: Path, masks: str, outside: bool) -> Capture:
    """Read the file, the held-out split beside it, and the points of a COLMAP model beside it if it has the same cameras."""
    tree = _read(file)
    names = [*_names(file, tree, "val_filenames"), *_names(file, tree, "test_filenames")]
    train = set(_names(file, tree, "train_filenames"))
    held_out = {name for name in names if name not in train}
    frames = [(tree, frame, "test" if frame["file_path"] in held_out else "train") for frame in tree["frames"]]
    notes = []
    if file.name == "transforms_train.json":
        other = next((scene / name for name in HELD_OUT if (scene / name).is_file()), None)
        if other is not None:
            test_tree = _read(other)
            frames += [(test_tree, frame, "test") for frame in test_tree["frames"]]
        if (scene / "transforms.json").is_file():
            notes.append("took transforms_train.json, not transforms.json beside it")
    images = [find_image(named(scene, _posix(frame["file_path"]), outside)) for _, frame, _ in frames]
    notes += note_missing(images, scene)
    views = [_view(scene, {**top, **frame}, image, split, outside)
             for (top, frame, split), image in zip(frames, images, strict=True) if image.is_file()]  # fmt: skip
    if "applied_transform" in tree:
        notes.append("applied_transform: the mesh is in the frame of transform_matrix, not in the one before that transform")
    return finish(scene, "transforms", views, masks, points=_sparse_points(scene, tree, views), notes=notes)


def written(views: Sequence[View]) -> dict[str, Any]:
    """The tree of a file that `load` reads back to these views, photographs by their full paths."""
    frames = []
    for view in views:
        camera = view.camera
        (fx, fy), (cx, cy) = camera.focal, camera.principal
        model, first = (ONE_FOCAL[camera.model][1], 3) if camera.model in ONE_FOCAL else (camera.model, 4)
        frame: dict[str, Any] = {"file_path": str(view.image.resolve())}
        if view.mask is not None:
            frame["mask_path"] = str(view.mask.resolve())
        frame |= {"camera_model": model, "w": camera.width, "h": camera.height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        frame |= dict(zip(DISTORTION.get(model, ()), camera.params[first:], strict=False))
        frame["transform_matrix"] = [*(view.c2w * [1, -1, -1, 1]).tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append(frame)
    held_out = [frame["file_path"] for frame, view in zip(frames, views, strict=True) if view.split == "test"]
    return {**({"test_filenames": held_out} if held_out else {}), "frames": frames}


def _read(file: Path) -> dict[str, Any]:
    tree = read_json(file)
    frames = tree.get("frames") if isinstance(tree, dict) else None
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{file}: want a list of frames, found {'none' if not frames else type(frames).__name__}")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict) or "file_path" not in frame or "transform_matrix" not in frame:
            found = ", ".join(frame) if isinstance(frame, dict) else f"a {type(frame).__name__}"
            raise SceneError(f"{file}: frame {i} wants file_path and transform_matrix, found {found or 'nothing'}")
        if not isinstance(frame["file_path"], str):
            raise SceneError(f"{file}: frame {i} wants its file_path as text, found {frame['file_path']!r}")
    return dict(tree)


def _names(file: Path, tree: Mapping[str, Any], key: str) -> list[str]:
    """The names that the file lists under a key, if any."""
    names = tree.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SceneError(f"{file}: want a list of names under {key}")
    return names


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _matrix(rows: Any, what: str) -> np.ndarray:
    try:
        return np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise SceneError(f"{what}: want 4x4 numbers") from None


def _view(scene: Path, values: Mapping[str, Any], image: Path, split: str, outside: bool) -> View:
    """A frame, given its keys with the file's where it has none of its own."""
    name = (Path(_posix(values["file_path"])).parent / image.name).as_posix()
    c2w = _matrix(values["transform_matrix"], f"transform_matrix of {name}")
    if c2w.shape in ((3, 4), (4, 4)):
        c2w = c2w[:3] * [1, -1, -1, 1]  # OpenGL's y up, z backwards to OpenCV's y down, z forward
    mask = values.get("mask_path") or ""
    if not isinstance(mask, str):
        raise SceneError(f"mask_path of {name}: want text, found {mask!r}")
    file = find_image(named(scene, _posix(mask), outside)) if mask else None
    return View(name, image, file, _camera(values, image, name), c2w, split)


def _sparse_points(scene: Path, tree: Mapping[str, Any], views: Sequence[View]) -> np.ndarray | None:
    """Points (n, 3) of a COLMAP model in the same folder, if photographs of the same name stand at the same places in it."""
    where = colmap.find(scene)
    if where is None:
        return None
    model = colmap.read(where)
    here = {Path(view.name).name: view.c2w[:3, 3] for view in views}
    there = {Path(name).name: c2w[:, 3] for name, (_, c2w) in model.images.items()}
    common = sorted(here.keys() & there.keys())
    if len(common) < 3 or not len(model.points):
        return None
    transform = _matrix(tree.get("applied_transform", np.eye(4)[:3]), "applied_transform")
    if transform.shape not in ((3, 4), (4, 4)):
        raise SceneError(f"applied_transform: want 3x4 numbers, found {'x'.join(map(str, transform.shape))}")
    centers = np.array([here[name] for name in common])
    moved = np.array([there[name] for name in common]) @ transform[:3, :3].T + transform[:3, 3]
    if np.abs(moved - centers).max() > SAME_PLACE * np.ptp(centers, axis=0).max():
        return None
    return np.asarray(model.points @ transform[:3, :3].T + transform[:3, 3])


def _camera(values: Mapping[str, Any], image: Path, name: str) -> Camera:
    """Intrinsics from a frame's keys, or the file's where the frame has none."""
    width, height = image_size(image)
    w, h = round(_number(values, "w", width)), round(_number(values, "h", height))
    if w <= 0 or h <= 0:
        raise SceneError(f"camera of {name}: want a size in pixels, found {w}x{h}")
    if "fl_x" in values:
        fx = _number(values, "fl_x")
    elif "camera_angle_x" in values:
        fx = _focal(w, values, "camera_angle_x")
    else:
        raise SceneError(f"camera of {name}: want fl_x or camera_angle_x, found {', '.join(k for k in values if k != 'frames')}")
    if "fl_y" in values:
        fy = _number(values, "fl_y")
    elif "camera_angle_y" in values and "fl_x" not in values:
        fy = _focal(h, values, "camera_angle_y")
    else:
        fy = fx
    K = (fx, fy, _number(values, "cx", w / 2), _number(values, "cy", h / 2))
    if isinstance(values.get("distortion_params"), list) and "k1" not in values:
        values = {**values, **dict(zip(("k1", "k2", "k3", "k4", "p1", "p2"), values["distortion_params"], strict=False))}
    k1, k2, k3, k4, p1, p2 = (_number(values, key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = str(values.get("camera_model", "")).upper()
    if model in FISHEYE or values.get("is_fisheye"):
        return Camera("OPENCV_FISHEYE", w, h, (*K, k1, k2, k3, k4))
    high = [f"{key} = {k:g}" for key in ("k4", "k5", "k6") if (k := _number(values, key, 0.0))]  # their meaning depends on who wrote them
    if model not in PERSPECTIVE or high:
        found = high[0] if model in PERSPECTIVE else model
        raise SceneError(f"camera of {name}: want {', '.join((*PERSPECTIVE[1:], *FISHEYE))} with k1 k2 k3 p1 p2, found {found}")
    if k3 != 0:
        return Camera("FULL_OPENCV", w, h, (*K, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    if any((k1, k2, p1, p2)):
        return Camera("OPENCV", w, h, (*K, k1, k2, p1, p2))
    return Camera("PINHOLE", w, h, K)


def _focal(side: int, values: Mapping[str, Any], key: str) -> float:
    """Focal length in pixels of an angle of view across `side` pixels."""
    angle = _number(values, key)
    if not 0 < angle < math.pi:
        raise SceneError(f"{key}: want an angle between 0 and pi, found {angle:g}")
    return 0.5 * side / math.tan(0.5 * angle)


def _number(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_NUMBER:
        raise SceneError(f"{key}: want a finite number, found {value!r}")
    return float(value)
