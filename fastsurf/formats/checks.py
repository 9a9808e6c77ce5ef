"""What every loader asks of photographs, cameras and masks before a Capture leaves it.

A loader states views as its files do (sizes, poses, masks where the format names them); `finish` then makes sure that the photographs
exist, fits intrinsics to their real size, validates poses and finds the masks.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..cameras import Camera, Capture, View, rescale
from ..errors import SceneError, one_line
from ..guard import LONGEST_NAME, MOST_NUMBER, picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".ppm")
HEIC = (".heic", ".heif")
FOREIGN = (*HEIC, ".webp")  # to COLMAP: bare photographs of these are converted (footage.py)
ROTATION_NOISE = 1e-3  # largest entry of |R R^T - I| that counts as rounding
SIZE_NOISE = 2.0  # pixels that a resized photograph's aspect may be off by
COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # to a terminal; others only look odd
OPAQUE_SAMPLE = 8  # photographs whose alpha channel is decoded to see whether it is more than opaque


def finish(path: Path, format: str, views: Sequence[View], masks: str, *, points: np.ndarray | None = None,
           sightings: np.ndarray | None = None, box: tuple[np.ndarray, float] | None = None, masks_in_order: bool = False,
           notes: Iterable[str] = ()) -> Capture:  # fmt: skip
    """Check what a loader found and complete it.

    Args:
        path: the folder that the user named.
        views: with the cameras and image sizes that the files state.
        masks: auto, ignore or a folder.
        masks_in_order: masks with other names than the photographs belong to them in sorted order.

    Raises:
        SceneError: photographs that are missing or of another shape than the cameras, poses that are no rigid motions, ...
    """
    if len(views) < 2:
        raise SceneError(f"{path}: want photographs from several sides, found {len(views)}; a surface needs at least two")
    for view in views:
        check_name(view.name)
    views = [replace(view, c2w=_rigid(view)) for view in views]
    left = [view for view in views if np.linalg.det(view.c2w[:, :3]) < 0]  # all of them: how poses are read may differ (conventions.py)
    if 0 < len(left) < len(views):
        raise SceneError(f"pose of {left[0].name} is left-handed (mirrored: det R = -1), others are not; want right-handed axes")
    if np.ptp([view.center for view in views], axis=0).max() == 0:
        raise SceneError(f"{path}: all {len(views)} cameras stand on one point, which shows no depth; want different viewpoints")
    views, size_notes = _fit_sizes(path, views)
    views, alpha, mask_notes = find_masks(path, views, masks, masks_in_order)
    points, sightings, far = (points, sightings, 0) if points is None else _near(points, sightings)
    far_notes = [f"left out {far} sparse points that are not finite or further than {MOST_NUMBER:g} away"] if far else []
    said = tuple(map(one_line, (*notes, *size_notes, *mask_notes, *far_notes)))
    return Capture(path, format, tuple(views), points, sightings, box, alpha, said)


def check_name(name: str) -> None:
    """Refuse a file's name that no file has in earnest: with line breaks or what a terminal would obey, or too long for any system.

    Raises:
        SceneError: such a name.
    """
    obeyed = COMMANDS.search(name) is not None
    longest = 0 if obeyed else max(len(os.fsencode(part)) for part in name.split("/"))
    if obeyed or longest > LONGEST_NAME[0] or len(os.fsencode(name)) > LONGEST_NAME[1]:
        raise SceneError(f"photograph {name[:80]!r}: want a name of printable characters that a file can have; rename it")


def named(home: Path, name: str, outside: bool) -> Path:
    """The file that a camera file names, counted from the folder `home`.

    Args:
        outside: it may lie elsewhere.

    Raises:
        SceneError: it does, and may not; or no file has such a name.
    """
    check_name(name)
    if not outside:
        climbs = os.path.normpath(PurePosixPath(name)).split(os.sep)[0] == ".."
        if climbs or name.startswith("/") or re.match("[A-Za-z]:", name):
            raise _left(name, home)
    return home / name


def _left(name: str, home: Path) -> SceneError:
    return SceneError(f"{name} lies outside {home}: move it there, or, if you know who made this scene, --set scene.outside=true")


def _near(points: np.ndarray, sightings: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The points (n, 3) that can be reckoned with, the sightings of those, and how many can't."""
    good = (np.abs(points) < MOST_NUMBER).all(1)  # False for NaN
    if good.all():
        return points, sightings, 0
    if sightings is not None:
        kept = sightings[good[sightings[:, 1]]]
        sightings = np.stack([kept[:, 0], (np.cumsum(good) - 1)[kept[:, 1]]], -1)
    return points[good], sightings, int(np.sum(~good))


def note_missing(images: Sequence[Path], path: Path) -> list[str]:
    """What to say about photographs that the cameras name and that are not there; the loader leaves them out.

    Camera files often still name a few photographs that were sorted out (instant-ngp's own example does).

    Args:
        path: the folder that the user named.

    Raises:
        SceneError: most are missing, so this is the wrong folder.
    """
    missing = [image for image in images if not image.is_file()]
    if not missing:
        return []
    if len(missing) > len(images) / 2:
        raise SceneError(f"{path}: cameras name {len(images)} photographs, {len(missing)} are missing, such as {missing[0]}; want them all")
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return [f"left out {len(missing)} of {len(images)} photographs whose files are missing: {missing[0].name}{more}"]


def require(files: Sequence[Path], what: str, path: Path) -> None:
    """SceneError naming the first of `files` that does not exist, and how many."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more of {len(files)}" if len(missing) > 1 else f" (1 of {len(files)})"
        raise SceneError(f"{path}: missing {what} {missing[0]}{more}")


def images_in(folder: Path) -> list[Path]:
    """The photographs in a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def find_image(stem: Path) -> Path:
    """The file itself, or the photograph that this path names without its extension; the path as it is when there is neither."""
    if stem.is_file():
        return stem
    for suffix in SUFFIXES:
        for candidate in (stem.with_name(stem.name + suffix), stem.with_name(stem.name + suffix.upper())):
            if candidate.is_file():
                return candidate
    return stem


def image_folder(path: Path, count: int) -> tuple[Path, list[Path]]:
    """The folder under `path` that holds photographs for cameras in sorted order: the one with `count` of them, else the first with any.

    Raises:
        SceneError: no photographs at all.
    """
    found = [(folder, images_in(folder)) for folder in (path / "image", path / "images", path / "rgb", path)]
    found = [(folder, images) for folder, images in found if images]
    if not found:
        raise SceneError(f"{path}: found cameras but no photographs; looked in image, images, rgb and the folder itself")
    folder, images = next(((folder, images) for folder, images in found if len(images) == count), found[0])
    return folder, images


def image_size(file: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone and without EXIF rotation, as COLMAP and Pillow see it."""
    with picture(file) as image:
        width, height = image.size
    return width, height


def numbers(text: str, file: Path) -> list[float]:
    """All numbers of a text, separated by blanks.

    Raises:
        SceneError: a word that is no number.
    """
    try:
        return [float(word) for word in text.split()]
    except ValueError as e:
        raise SceneError(f"{file}: want numbers, {e}") from None


def from_world_to_camera(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """c2w (3, 4) of x_cam = R x + t."""
    return np.concatenate([rotation.T, -(rotation.T @ translation).reshape(3, 1)], axis=1)


def pinhole(K: np.ndarray, width: int, height: int, name: str) -> Camera:
    """PINHOLE camera of a calibration matrix (3, 3) with K[2, 2] = 1.

    Raises:
        SceneError: skew that moves pixels by more than half, which no camera model here has.
    """
    if not np.isfinite(K).all() or not (np.diag(K) > 0).all():
        raise SceneError(f"camera of {name}: want a finite calibration with positive focal lengths, found {np.diag(K)[:2].tolist()}")
    if abs(K[0, 1]) * height / (2 * K[1, 1]) > 0.5:
        raise SceneError(f"camera of {name}: skew of {K[0, 1]:.4g} can't be represented; want rectangular pixels")
    return Camera("PINHOLE", width, height, (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])))


def guess_stated_size(principal: tuple[float, float], width: int, height: int, name: str) -> tuple[int, int]:
    """The image size that intrinsics are for, where the file doesn't state it: that of the photograph, unless the principal point shows
    that the photograph was reduced by a whole factor.

    Raises:
        SceneError: intrinsics are for another size that can't be guessed.
    """
    ratios = np.array([2 * principal[0] / width, 2 * principal[1] / height])
    if not np.abs(ratios).max() < MOST_NUMBER:
        raise SceneError(f"camera of {name}: want a finite principal point, found {principal}")
    factor = int(np.rint(ratios.mean()))
    same = ratios.min() > 0 and ratios.max() / ratios.min() < 1.15
    if not same or 2 / 3 < ratios.mean() < 1.5:
        return width, height
    if factor >= 2 and np.abs(ratios / factor - 1).max() < 0.15:
        return width * factor, height * factor
    raise SceneError(
        f"camera of {name}: principal point ({principal[0]:.0f}, {principal[1]:.0f}) is far off the middle of {width}x{height}; "
        "want photographs of the size that the cameras were made for"
    )


def _rigid(view: View) -> np.ndarray:
    """The view's pose with its rotation made exactly orthonormal, (3, 4) float64."""
    c2w = np.asarray(view.c2w, dtype=np.float64)
    if c2w.shape not in ((3, 4), (4, 4)):
        raise SceneError(f"pose of {view.name}: want 3x4 or 4x4 numbers, found {'x'.join(map(str, c2w.shape))}")
    if not np.isfinite(c2w).all():
        raise SceneError(f"pose of {view.name} is not finite; want real numbers")
    if np.abs(c2w).max() > MOST_NUMBER:
        raise SceneError(f"pose of {view.name} has the number {np.abs(c2w).max():g}; want at most {MOST_NUMBER:g}")
    R = c2w[:3, :3]
    error = np.abs(R @ R.T - np.eye(3)).max()
    if error > ROTATION_NOISE:
        scale = abs(np.linalg.det(R)) ** (1 / 3)
        scaled = scale > 0 and np.abs(R @ R.T / scale**2 - np.eye(3)).max() < ROTATION_NOISE
        kind = f"scaled by {scale:.4g}" if scaled else "not orthonormal"
        raise SceneError(f"pose of {view.name}: rotation is {kind} (|R R^T - I| = {error:.3g}); want rigid poses")
    U, _, Vt = np.linalg.svd(R)
    return np.concatenate([U @ Vt, c2w[:3, 3:]], axis=1)


def _fit_sizes(path: Path, views: Sequence[View]) -> tuple[list[View], list[str]]:
    fitted: list[View] = []
    changes: Counter[tuple[tuple[int, int], tuple[int, int]]] = Counter()
    for view in views:
        stated, real = (view.camera.width, view.camera.height), image_size(view.image)
        if stated != real:
            off = abs(real[1] - stated[1] * real[0] / stated[0])
            if off > SIZE_NOISE * max(1.0, real[0] / stated[0]):
                turned = "; is it turned by 90 degrees?" if stated == real[::-1] else ""
                raise SceneError(
                    f"{view.image} is {real[0]}x{real[1]} but its camera is for {stated[0]}x{stated[1]}, another shape{turned}; "
                    "want photographs as the cameras were made for, or evenly resized"
                )
            changes[stated, real] += 1
        fitted.append(replace(view, camera=rescale(view.camera, *real)))
    notes = [f"intrinsics were for {w0}x{h0}, rescaled to {w1}x{h1} ({n} of {len(views)} photographs)"
             for ((w0, h0), (w1, h1)), n in changes.most_common(3)]  # fmt: skip
    return fitted, notes


def find_masks(path: Path, views: Sequence[View], masks: str, in_order: bool) -> tuple[list[View], bool, list[str]]:
    """Views with their masks, whether alpha channels are the masks instead, and notes.

    Args:
        path: folder of the scene.
        masks: auto (those found), ignore or a folder.
        in_order: masks with other names than the photographs belong to them in sorted order.

    Raises:
        SceneError: no such folder, some photographs without a mask, or masks of another shape.
    """
    bare = [replace(view, mask=None) for view in views]
    if masks == "ignore":
        return bare, False, []
    if masks != "auto":
        return _masks_from(mask_folder(path, masks), bare, in_order, explicit=True), False, []
    if any(view.mask for view in views):
        files = [view.mask or Path(f"{view.name} (no mask named)") for view in views]
        require(files, "mask", path)
        return _same_shape(views), False, []
    for folder in (path / "mask", path / "masks"):
        if folder.is_dir() and (masked := _masks_from(folder, bare, in_order, explicit=False)):
            return masked, False, []
    if not all(_has_alpha(view.image) for view in views):
        return bare, False, []
    sample = views[:: max(1, len(views) // OPAQUE_SAMPLE)]
    if any(_is_transparent(view.image) for view in sample):
        return bare, True, []
    return bare, False, ["the photographs' alpha channel is opaque everywhere and no mask"]


def mask_folder(path: Path, masks: str) -> Path:
    """The folder that `masks` names, as it is or in the folder `path`.

    Raises:
        SceneError: there is none.
    """
    return _folder(path, masks, "masks: want auto, ignore or a folder")


def find_ignored(path: Path, views: Sequence[View], where: str) -> list[View]:
    """Views with the pictures that say which of their pixels to leave out: those of a folder, named as the photographs, or instant-ngp's
    dynamic_mask_NAME.png beside them. A photograph without one is whole.

    Args:
        where: auto (the folder `ignore`, then instant-ngp's), none or a folder.

    Raises:
        SceneError: no such folder, nothing in it that belongs to these photographs, or a picture of another shape than its photograph.
    """
    if where == "none":
        return [replace(view, ignore=None) for view in views]
    folder = path / "ignore" if where == "auto" else ignore_folder(path, where)
    if folder.is_dir():
        found = ignored_for(folder, [view.name for view in views])
    else:
        beside = [view.image.with_name(f"dynamic_mask_{view.image.stem}.png") for view in views]
        found = [file if file.is_file() else None for file in beside]
    views = [replace(view, ignore=file or view.ignore) for view, file in zip(views, found, strict=True)]
    for view in views:
        if view.ignore is not None:
            _check_shape("picture of what to ignore", view.ignore, view.camera)
    return views


def ignore_folder(path: Path, where: str) -> Path:
    """The folder that `scene.ignore` names, as it is or in the folder `path`.

    Raises:
        SceneError: there is none.
    """
    return _folder(path, where, "scene.ignore: want auto, none or a folder")


def _folder(path: Path, name: str, wanted: str) -> Path:
    folder = next((f for f in (Path(name), path / name) if f.is_dir()), None)
    if folder is None:
        raise SceneError(f"{wanted}, found {name!r}, which is no folder")
    return folder


def ignored_for(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """`pictures_for`, of a folder with pictures of what to ignore.

    Raises:
        SceneError: none of them belongs to these photographs.
    """
    found = pictures_for(folder, names)
    if not any(found) and (others := _pictures(folder)):
        raise SceneError(
            f"{folder}: none of its {len(others)} pictures is named as a photograph, such as {Path(names[0]).stem}.png; "
            "rename them, or take the folder away (reconstruct: --set scene.ignore=none)"
        )
    return found


def pictures_for(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """For each photograph the picture in a folder or below that is named after it: by stem, or by whole name with another extension
    behind, as it is called now or elsewhere, before or after it was converted and its blanks became underscores (footage.py).

    Raises:
        SceneError: one that would belong to several photographs.
    """
    by_name = {file.relative_to(folder).with_suffix("").as_posix(): file for file in _pictures(folder)}
    by_name = {plain_name(name): file for name, file in by_name.items()} | by_name
    own = set(names)
    found = []
    for name in names:
        called = (known for known in (*_called(name), *_called(plain_name(name))) if known == name or known not in own)
        found.append(next((by_name[known] for known in called if known in by_name), None))
    for file, uses in Counter(filter(None, found)).most_common(1):
        if uses > 1:
            how = f"want whole names, such as {Path(names[found.index(file)]).name}.png, and sub-folders as the photographs have them"
            raise SceneError(f"{file} would be the mask of {uses} photographs with the same stem; {how}")
    return found


def plain_name(name: str) -> str:
    """A name that COLMAP's lists of pairs can hold."""
    return re.sub(r"[\s#]+", "_", name)


def _called(name: str) -> Iterator[str]:
    """What a picture that belongs to a photograph may be called, its own extension left out; the likeliest first."""
    parts = Path(name).parts
    for first in range(len(parts)):
        tail = Path(*parts[first:])
        stem = tail.with_suffix("").as_posix()
        yield from (stem, tail.as_posix(), *(f"{stem}{suffix}" for known in FOREIGN for suffix in (known, known.upper())))


def _masks_from(folder: Path, views: Sequence[View], in_order: bool, explicit: bool) -> list[View]:
    """Masks of a folder by name (`pictures_for`), or in order; empty when none belongs to these views."""
    found = pictures_for(folder, [view.name for view in views])
    if in_order and None in found and len(files := _pictures(folder)) == len(views):
        found = list(files)
    if not any(found) and not explicit:
        return []
    missing = [view.name for view, mask in zip(views, found, strict=True) if mask is None]
    if missing:
        raise SceneError(f"{folder}: no mask for {missing[0]} ({len(missing)} of {len(views)} missing); "
                         "want one with its stem for every photograph, or --masks ignore")  # fmt: skip
    return _same_shape([replace(view, mask=mask) for view, mask in zip(views, found, strict=True)])


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, sorted; those whose own name starts with a dot are none."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _same_shape(views: Sequence[View]) -> list[View]:
    for view in views:
        assert view.mask is not None
        _check_shape("mask", view.mask, view.camera)
    return list(views)


def _check_shape(what: str, file: Path, camera: Camera) -> None:
    width, height = image_size(file)
    if abs(height - camera.height * width / camera.width) > SIZE_NOISE * max(1.0, width / camera.width):
        raise SceneError(f"{what} {file} is {width}x{height}, its photograph {camera.width}x{camera.height}; want the same shape")


def _has_alpha(file: Path) -> bool:
    with picture(file) as image:
        alpha: bool = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return alpha


def _is_transparent(file: Path) -> bool:
    with picture(file) as image:
        opaque = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    return not opaque
