"""Photographs without cameras, and videos: what a folder holds, and how it becomes a folder that COLMAP and our loaders read.

Pixels stay as they are stored: neither COLMAP nor our loaders turn a photograph by its EXIF orientation, so that nothing here may either.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .errors import SceneError
from .formats.checks import FOREIGN, HEIC, SUFFIXES, ignored_for, pictures_for, plain_name
from .guard import picture

VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
MOST_FRAME_PIXELS = 40_000_000  # 8K has 35 million
MOST_SILENCE = 15  # seconds of ffmpeg without a frame; without memory, for instance, it may wait for itself
MOST_MEMORY = 2 << 30  # bytes of ffmpeg, which a file may have keep sixteen frames; 8K needs about 1.2 GiB
WHO_SAYS = r"^(\[[^]]* @ \w+\]\s*)+"  # before what ffmpeg's parts say
CONTAINERS = ("-format_whitelist", "mov,matroska,avi", "-protocol_whitelist", "file")
WITHIN_LIMITS = ("-threads", "4", "-max_pixels", str(MOST_FRAME_PIXELS))
IMAGE_FOLDERS = ("images", "image", "rgb")
MASK_FOLDERS = ("mask", "masks")
IGNORE_FOLDERS = ("ignore",)
WINDOW = 0.4  # seconds of a video from which one frame is taken
FEWEST_FRAMES = 24  # of a short video
CANDIDATES = 8  # frames of a window whose sharpness is measured
SHARPNESS_SIDE = 960  # pixels; finer detail is noise
EXIF_IFD, MAKE, MODEL, FOCAL_LENGTH = 0x8769, 0x010F, 0x0110, 0x920A  # EXIF tags
ORIENTATION = 0x0112  # how a viewer turns the picture
UP = {3: (0, 1), 4: (0, 1), 5: (-1, 0), 6: (-1, 0), 7: (1, 0), 8: (1, 0)}  # by orientation; else (0, -1)

Progress = Callable[[float, str], None]
Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Footage:
    """Photographs `names`, relative to the folder `root` and sorted, or a video `root` where there are none; folders of their masks and of
    pictures that say what to ignore in them."""

    root: Path
    names: tuple[str, ...]
    masks: Path | None = None
    ignored: Path | None = None

    @property
    def is_video(self) -> bool:
        """Whether frames have to be picked first."""
        return not self.names


def find_footage(path: Path) -> Footage | None:
    """The photographs in a folder; where there are none, those in its images folder, or in all its folders; else its only video.

    Args:
        path: folder of photographs, or a video.
    """
    if path.is_file():
        return Footage(path, ()) if path.suffix.lower() in VIDEOS else None
    if not path.is_dir():
        return None
    for root in (path, *(path / name for name in IMAGE_FOLDERS)):
        names = _photographs(root, root.glob("*")) or (_photographs(root, root.rglob("*")) if root != path else ())
        if names:
            return Footage(root, names, _beside(root, MASK_FOLDERS), _beside(root, IGNORE_FOLDERS))
    names = _photographs(path, path.rglob("*"))
    if names:
        return Footage(path, names, _beside(path, MASK_FOLDERS), _beside(path, IGNORE_FOLDERS))
    videos = [file for file in sorted(path.iterdir()) if file.suffix.lower() in VIDEOS and not file.name.startswith(".") and file.is_file()]
    return Footage(videos[0], ()) if len(videos) == 1 else None


def gather(footage: Footage, out: Path, most_frames: int, on_progress: Progress) -> None:
    """Put photographs (or a video's sharpest frames), their masks and what to ignore into out/images, masks and ignore, each folder whole
    or not at all; images comes last.

    Files are hard links where that is possible, else copies. Those that COLMAP can't read are converted; blanks in names, which its lists
    of pairs can't hold, become underscores. Masks take the names of their photographs.

    Raises:
        SceneError: a file that can't be read, or a library for it that is missing; masks that are named after several photographs, or
            pictures of what to ignore after none.
    """
    if (out / "images").is_dir():
        return
    with _Folder(out / "images") as part:
        if footage.is_video:
            pick_frames(footage.root, part, most_frames, on_progress)
            targets = {name: name for name in names_in(part)}
        else:
            targets = _take(footage, part, on_progress)
        names = list(targets)
        for kind, folder, find in (("masks", footage.masks, pictures_for), ("ignore", footage.ignored, ignored_for)):
            if folder is not None and not (out / kind).is_dir():
                with _Folder(out / kind) as beside:
                    _link_as(list(targets.values()), find(folder, names), beside)


def names_in(images: Path) -> list[str]:
    """Names of the photographs that `gather` left, sorted."""
    return sorted(file.relative_to(images).as_posix() for file in images.rglob("*") if file.suffix.lower() in SUFFIXES)


def up_in_picture(file: Path) -> tuple[int, int]:
    """Which way (x, y) of the stored pixels is up when a viewer shows the photograph: EXIF orientation."""
    return UP.get(_exif(file).get(ORIENTATION, 1), (0, -1))


def lens(file: Path) -> tuple[Any, ...]:
    """What photographs that share their intrinsics agree in: size, and make, model and focal length where EXIF names them."""
    exif = _exif(file)
    with picture(file, "photograph", "replace it, or take it away") as image:
        known = (*image.size, exif.get(MAKE), exif.get(MODEL), exif.get_ifd(EXIF_IFD).get(FOCAL_LENGTH))
    return known


def pick_frames(video: Path, folder: Path, most: int, on_progress: Progress) -> None:
    """Write the sharpest frame of each of at most `most` equal stretches of a video as folder/frame_NNNNN.jpg, counted from 0.

    Raises:
        SceneError: not a video, or no imageio-ffmpeg.
    """
    from PIL import Image

    for number, frame in sharpest_frames(video, most, on_progress):
        Image.fromarray(frame).save(folder / f"frame_{number:05d}.jpg", quality=95, subsampling=0)


def sharpest_frames(video: Path, most: int, on_progress: Progress) -> Iterator[tuple[int, Frame]]:
    """The sharpest frame of each of at most `most` equal stretches of a video: its number, counted from 0, and pixels (h, w, 3).

    Raises:
        SceneError: not a video, or no imageio-ffmpeg.
    """
    count, seconds = _count_frames(video, on_progress)
    windows = int(np.clip(seconds / WINDOW, min(FEWEST_FRAMES, most), most).clip(1, count))
    stride = max(1, count // (windows * CANDIDATES))
    best: tuple[float, int, Frame] | None = None
    window = 0
    with _ffmpeg(video, "-c:v", "ppm", "-pix_fmt", "rgb24", "-f", "image2pipe", "-") as (stream, alive):
        for k, frame in enumerate(_ppm_frames(stream)):
            alive()
            now = min(k * windows // count, windows - 1)  # should there be more than were counted, they belong to the last
            if now > window and best is not None:
                yield best[1:]
                window, best = now, None
            if k % stride == 0 or best is None:
                how = sharpness(frame[..., 1])
                if best is None or how > best[0]:
                    best = (how, k, frame)
            on_progress(min(1.0, k / count), f"frame {k} of {count}")
        if best is not None:
            yield best[1:]


def _count_frames(video: Path, on_progress: Progress) -> tuple[int, float]:
    """How many frames can be decoded, which is at least one, and about how many seconds they last."""
    count, seconds = 0, 0.0
    with _ffmpeg(video, "-progress", "-", "-f", "null", os.devnull) as (stream, alive):
        for line in stream:
            name, _, value = line.decode(errors="replace").strip().partition("=")
            if name == "frame" and value.strip().isdecimal():
                if int(value) > count:
                    alive()
                count = int(value)
                on_progress(0.0, f"{count} frames counted")
            elif name == "out_time_us" and value.lstrip("-").isdecimal():
                seconds = int(value) / 1e6
    if not count:
        raise SceneError(f"{video}: can't be read as a video (no frames in it)")
    return count, seconds


@contextlib.contextmanager
def _ffmpeg(video: Path, *to: str) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """What ffmpeg writes on its stdout while it decodes a file's first video stream, each frame once; and what to call at each frame.

    It takes the containers of VIDEOS alone, by their content: of others some are lists of files and addresses to open.

    Raises:
        SceneError: it isn't there, or can't decode the file, and what it says first.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        raise SceneError(f"{video}: videos need imageio-ffmpeg, which is not installed: pip install 'fastsurf[video]'") from None
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as e:
        raise SceneError(f"{video}: videos need ffmpeg ({e})") from None
    words = [program, "-nostdin", "-hide_banner", "-v", "error", *CONTAINERS, *WITHIN_LIMITS, "-i", f"file:{video}", "-map", "0:v:0"]
    words += ["-fps_mode", "passthrough", "-thread_queue_size", "2", *to]  # few frames wait for each other
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # in a group of its own: what Ctrl-C means is decided here
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, process_group=0
        )
        assert process.stdout is not None
        silence = _Silence(process)
        try:
            _limit_memory(process.pid)
            yield process.stdout, silence.broken
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            process.wait()
            silence.over.set()
        if process.returncode:
            said.seek(0)
            text = said.read(1 << 16).decode(errors="replace").strip()
            cause = re.sub(WHO_SAYS, "", text.partition("\n")[0]) or f"ffmpeg ended with {process.returncode}"
            if silence.ended_it:
                cause = f"ffmpeg said nothing for {MOST_SILENCE} s"
            if " allocat" in text or "pthread_create" in text:
                cause = f"ffmpeg wants more than {MOST_MEMORY >> 20} MiB of memory for its frames"
            raise SceneError(f"{video}: can't be read as a video ({cause})")


class _Silence:
    """Ends a process MOST_SILENCE seconds after `broken` was last called, not counting those in which this process was stopped."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.over, self.ended_it, self._seconds = threading.Event(), False, 0
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def broken(self) -> None:
        self._seconds = 0

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        while not self.over.wait(1.0):
            self._seconds += 1
            if self._seconds > MOST_SILENCE:
                self.ended_it = True
                process.kill()
                return


def _limit_memory(process: int) -> None:
    """To MOST_MEMORY, where the system can: beyond it, ffmpeg says so and ends."""
    with contextlib.suppress(ImportError, AttributeError, ProcessLookupError, ValueError, PermissionError):
        import resource

        resource.prlimit(process, resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))


def _ppm_frames(stream: IO[bytes]) -> Iterator[Frame]:
    """Pictures of a stream of PPM files; the last one is left out where it is not whole."""
    while stream.readline(16) == b"P6\n":
        width, height = (int(n) for n in stream.readline(64).split())
        stream.readline(16)  # 255
        data = stream.read(3 * width * height)
        if len(data) == 3 * width * height:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def sharpness(gray: npt.NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a picture (h, w) reduced to about SHARPNESS_SIDE pixels: lower when it is blurred."""
    by = max(1, round(max(gray.shape) / SHARPNESS_SIDE))
    h, w = gray.shape[0] // by, gray.shape[1] // by
    small = gray[: h * by, : w * by].reshape(h, by, w, by).mean((1, 3), dtype=np.float32)
    laplacian = small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:] - 4 * small[1:-1, 1:-1]
    return float(laplacian.var()) if laplacian.size else 0.0


def _photographs(root: Path, files: Any) -> tuple[str, ...]:
    found = [file.relative_to(root) for file in files if file.suffix.lower() in (*SUFFIXES, *HEIC) and file.is_file()]
    return tuple(sorted(
        name.as_posix() for name in found
        if not any(part.startswith(".") for part in name.parts) and not {*name.parts[:-1]} & {*MASK_FOLDERS, *IGNORE_FOLDERS}
    ))  # fmt: skip


def _beside(root: Path, called: Sequence[str]) -> Path | None:
    """A folder of such a name in the folder of photographs, or beside it where its name says that it belongs to a scene."""
    homes = [root, *([root.resolve().parent] if root.resolve().name in IMAGE_FOLDERS else [])]
    return next((home / name for home in homes for name in called if (home / name).is_dir()), None)


def _take(footage: Footage, folder: Path, on_progress: Progress) -> dict[str, str]:
    """Put the photographs into a folder; the name that each has there, by its own."""
    targets: dict[str, str] = {}
    taken: set[str] = set()
    for done, name in enumerate(footage.names):
        on_progress(done / len(footage.names), name)
        if (footage.root / name).suffix.lower() in FOREIGN:
            targets[name] = _convert(footage.root / name, folder, plain_name(name), taken)
        else:
            _exif(footage.root / name)  # it can be read, or is named here
            targets[name] = _unique(plain_name(name), taken)
            _link(footage.root / name, folder / targets[name])
    return targets


def _link_as(names: Sequence[str], files: Sequence[Path | None], folder: Path) -> None:
    """Put files that belong to photographs `names` into a folder, under their stems, or whole names where several have one stem."""
    stems = Counter(Path(name).with_suffix("").as_posix().casefold() for name in names)
    for name, file in zip(names, files, strict=True):
        if file is not None:
            alone = stems[Path(name).with_suffix("").as_posix().casefold()] == 1
            _link(file, folder / (Path(name).with_suffix(file.suffix) if alone else f"{name}{file.suffix}"))


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copy2(file, target)


def _convert(file: Path, folder: Path, name: str, taken: set[str]) -> str:
    """A photograph as JPEG, or PNG where it has transparency; EXIF stays, so that focal length and orientation do. Returns its name."""
    if file.suffix.lower() in HEIC:
        try:
            import pillow_heif
        except ImportError:
            raise SceneError(f"{file}: HEIC photographs need pillow-heif, which is not installed: pip install 'fastsurf[heic]'") from None
        pillow_heif.register_heif_opener()
    with picture(file, "photograph", "replace it, or take it away") as image:
        see_through = "A" in image.getbands() and image.getchannel("A").getextrema() != (255, 255)
        exif = image.getexif()
        exif.get_ifd(EXIF_IFD)  # or it would not be written
        keep: dict[str, Any] = {"exif": exif, "icc_profile": image.info.get("icc_profile")}
        photograph = image.convert("RGBA" if see_through else "RGB")
    name = _unique(Path(name).with_suffix(".png" if see_through else ".jpg").as_posix(), taken)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not see_through:
        keep |= {"quality": 95, "subsampling": 0}
    photograph.save(target, **keep)
    return name


def _unique(name: str, taken: set[str]) -> str:
    """`name`, with a number where another photograph has it already, capitals or not."""
    path, n = Path(name), 1
    while name.casefold() in taken:
        n += 1
        name = path.with_stem(f"{path.stem}_{n}").as_posix()
    taken.add(name.casefold())
    return name


def _exif(file: Path) -> Any:
    from PIL import Image

    with picture(file, "photograph", "replace it, or take it away") as image:
        bare = image.format == "PNG" and "exif" not in image.info  # or Pillow would decode all of it to look behind the pixels
        exif = Image.Exif() if bare else image.getexif()
    return exif


class _Folder:
    """A folder that takes its name only when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(f".{path.name}.part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        return self._part

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self._part, self._path)
        else:
            shutil.rmtree(self._part, ignore_errors=True)
