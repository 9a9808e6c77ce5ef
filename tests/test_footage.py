"""Bare photographs and videos become a folder that COLMAP can read: whole, under plain names, with the pixels as they were stored."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastsurf import footage
from fastsurf.errors import SceneError
from fastsurf.footage import ORIENTATION, find_footage, gather, lens, names_in, pick_frames, sharpness, up_in_picture
from fastsurf.formats.checks import plain_name

SILENT = lambda done, what: None  # noqa: E731


def picture(path, size=(24, 16), mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(pixels.squeeze()).convert(mode).save(path, **options)
    return path


def exif(**tags):
    found = Image.Exif()
    for tag, value in {"orientation": (ORIENTATION, 1), "make": (0x010F, "Acme")}.items():
        found[value[0]] = tags.get(tag, value[1])
    found.get_ifd(0x8769)[0x920A] = tags.get("focal", 4.0)
    return found


def gathered(folder, out):
    gather(find_footage(folder), out, 10, SILENT)
    return names_in(out / "images")


def test_photographs_are_found_in_the_folder_else_in_its_images_else_below(tmp_path):
    assert find_footage(tmp_path) is None and find_footage(tmp_path / "away") is None
    picture(tmp_path / "left/b.JPG")
    picture(tmp_path / "right/a.png")
    picture(tmp_path / "masks/a.png")
    picture(tmp_path / "ignore/a.png")
    picture(tmp_path / ".trash/z.png")
    assert find_footage(tmp_path).names == ("left/b.JPG", "right/a.png")
    picture(tmp_path / "images/c.jpg")
    found = find_footage(tmp_path)
    assert (found.root, found.names) == (tmp_path / "images", ("c.jpg",))
    assert (found.masks, found.ignored) == (tmp_path / "masks", tmp_path / "ignore")
    assert find_footage(tmp_path / "images") == found
    picture(tmp_path / "d.jpg")
    assert find_footage(tmp_path).names == ("d.jpg",) and not find_footage(tmp_path).is_video


def test_a_lone_video_is_taken_where_there_are_no_photographs(tmp_path):
    for name in ("walk.MOV", "._walk.MOV"):
        (tmp_path / name).touch()
    assert find_footage(tmp_path).is_video and find_footage(tmp_path) == find_footage(tmp_path / "walk.MOV")
    (tmp_path / "again.mp4").touch()
    assert find_footage(tmp_path) is None
    (tmp_path / "notes.txt").touch()
    assert find_footage(tmp_path / "notes.txt") is None


def test_masks_whose_plain_names_are_one_stay_what_they_were(tmp_path):
    """A link that is written through would change the user's own file."""
    photographs = [picture(tmp_path / f"in/{name}.png", seed=k) for k, name in enumerate(("a b", "a_b"))]
    masks = [picture(tmp_path / f"in/masks/{name}.png", mode="L", seed=9 + k) for k, name in enumerate(("a b", "a_b"))]
    before = [file.read_bytes() for file in (*photographs, *masks)]
    assert gathered(tmp_path / "in", tmp_path / "out") == ["a_b.png", "a_b_2.png"]
    assert before == [file.read_bytes() for file in (*photographs, *masks)]
    assert before == [(tmp_path / "out" / kind / name).read_bytes() for kind in ("images", "masks") for name in ("a_b.png", "a_b_2.png")]


def test_photographs_are_linked_and_survive_their_first_names(tmp_path):
    file = picture(tmp_path / "in/my photo #1.png")
    mask = picture(tmp_path / "in/masks/my photo #1.png", mode="L")
    data, cut = file.read_bytes(), mask.read_bytes()
    assert gathered(tmp_path / "in", tmp_path / "out") == ["my_photo_1.png"] == [plain_name("my photo #1.png")]
    assert (tmp_path / "out/images/my_photo_1.png").samefile(file)
    file.unlink()
    mask.unlink()
    assert (tmp_path / "out/images/my_photo_1.png").read_bytes() == data
    assert (tmp_path / "out/masks/my_photo_1.png").read_bytes() == cut


def test_masks_take_the_names_of_their_photographs(tmp_path):
    """Those of converted ones too, and where two have one stem; what belongs to none stays behind."""
    named = {"l/a.jpg": "l/a.jpg.png", "l/a.webp": "l/a.webp.PNG", "l/b.png": "l/b.png.png", "l/b.jpg": "l/b.jpg.png",
             "l/c.jpg": "l/c.jpg.png", "r/D e.WEBP": "r/D e.webp.png", "r/f.webp": "r/f.png"}  # fmt: skip
    wanted = ["l/a.png", "l/a_2.PNG", "l/b.jpg.png", "l/b.png.png", "l/c.png", "r/D_e.png", "r/f.png"]
    for k, (photograph, mask) in enumerate(named.items()):
        picture(tmp_path / "in" / photograph, seed=k)
        picture(tmp_path / "in/masks" / mask, mode="L", seed=k)
    for name in ("l/a.jpg.png", "r/f.webp.png"):
        picture(tmp_path / "in/ignore" / name, mode="L", seed=9)
    picture(tmp_path / "in/masks/z.png", mode="L")
    assert gathered(tmp_path / "in", tmp_path / "out") == ["l/a.jpg", "l/a_2.jpg", "l/b.jpg", "l/b.png", "l/c.jpg", "r/D_e.jpg", "r/f.jpg"]
    assert names_in(tmp_path / "out/masks") == sorted(wanted)
    assert names_in(tmp_path / "out/ignore") == ["l/a.png", "r/f.png"]
    of = dict(zip(wanted, ("l/a.jpg", "l/a.webp", "l/b.jpg", "l/b.png", "l/c.jpg", "r/D e.WEBP", "r/f.webp"), strict=True))
    for mask, photograph in of.items():
        assert (tmp_path / "out/masks" / mask).samefile(tmp_path / "in/masks" / named[photograph])


def test_masks_that_may_belong_to_several_photographs_or_to_none_are_refused(tmp_path):
    for name in ("a.jpg", "a.webp"):
        picture(tmp_path / "in" / name)
    picture(tmp_path / "in/masks/a.png", mode="L")
    with pytest.raises(SceneError, match=r"a\.png would be the mask of 2 photographs"):
        gathered(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/masks").rename(tmp_path / "in/ignore")
    (tmp_path / "in/ignore/a.png").rename(tmp_path / "in/ignore/b.png")
    with pytest.raises(SceneError, match=r"ignore: none of its 1 pictures is named as a photograph, such as a\.png"):
        gathered(tmp_path / "in", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_picture_with_the_whole_name_of_one_photograph_is_not_the_others(tmp_path):
    for name in ("a.jpg", "a.webp", "b.jpg"):
        picture(tmp_path / "in" / name)
    mark = picture(tmp_path / "in/ignore/a.webp.png", mode="L")
    assert gathered(tmp_path / "in", tmp_path / "out") == ["a.jpg", "a_2.jpg", "b.jpg"]
    assert names_in(tmp_path / "out/ignore") == ["a_2.png"] and (tmp_path / "out/ignore/a_2.png").samefile(mark)


def test_masks_may_have_underscores_where_photographs_have_blanks(tmp_path):
    picture(tmp_path / "in/my photo 1.jpg")
    picture(tmp_path / "in/masks/my_photo_1.png", mode="L")
    gathered(tmp_path / "in", tmp_path / "out")
    assert names_in(tmp_path / "out/masks") == ["my_photo_1.png"]


def test_links_to_photographs_become_files(tmp_path):
    file = picture(tmp_path / "far/a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").symlink_to(file)
    gathered(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out/images/a.png").is_symlink() and (tmp_path / "out/images/a.png").samefile(file)


def test_names_that_become_the_same_stay_apart(tmp_path):
    for k, name in enumerate(("a b.jpg", "a_b.jpg", "A_B.webp")):
        picture(tmp_path / "in" / name, seed=k)
    assert sorted(name.casefold() for name in gathered(tmp_path / "in", tmp_path / "out")) == ["a_b.jpg", "a_b_2.jpg", "a_b_3.jpg"]


def test_webp_becomes_jpeg_or_png_with_its_exif(tmp_path):
    solid = picture(tmp_path / "in/a.webp", lossless=True, exif=exif(orientation=6, focal=5.5))
    clear = picture(tmp_path / "in/b.webp", mode="RGBA", lossless=True)
    assert gathered(tmp_path / "in", tmp_path / "out") == ["a.jpg", "b.png"]
    with Image.open(tmp_path / "out/images/a.jpg") as made, Image.open(solid) as was:
        assert made.size == was.size and np.abs(np.asarray(made, float) - np.asarray(was, float)).mean() < 6
    with Image.open(tmp_path / "out/images/b.png") as made, Image.open(clear) as was:
        assert made.mode == "RGBA" and np.array_equal(np.asarray(made.getchannel("A")), np.asarray(was.getchannel("A")))
    assert up_in_picture(tmp_path / "out/images/a.jpg") == (-1, 0)
    assert lens(tmp_path / "out/images/a.jpg") == lens(solid)


def test_heic_is_converted_as_its_own_decoder_turns_it(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    gray = np.zeros((64, 96, 3), np.uint8)
    gray[:32] = 255  # bright above
    (tmp_path / "in").mkdir()
    Image.fromarray(gray).save(tmp_path / "in/IMG 1.HEIC", quality=90, exif=exif(orientation=6))  # which counts for nothing in HEIC
    picture(tmp_path / "in/masks/IMG 1.heic.png", mode="L")
    assert gathered(tmp_path / "in", tmp_path / "out") == ["IMG_1.jpg"] and names_in(tmp_path / "out/masks") == ["IMG_1.png"]
    made = tmp_path / "out/images/IMG_1.jpg"
    with Image.open(made) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.shape == (64, 96) and pixels[:30].min() > 240 and pixels[34:].max() < 15
    assert up_in_picture(made) == (0, -1) and lens(made)[2:] == ("Acme", None, 4.0)


def test_a_photograph_that_cannot_be_read_leaves_no_half_folder(tmp_path):
    picture(tmp_path / "in/a.webp")
    (tmp_path / "in/b.webp").write_bytes(b"RIFF")
    with pytest.raises(SceneError, match=r"b\.webp can't be read"):
        gathered(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_up_is_where_a_viewer_shows_the_upper_edge(tmp_path, orientation):
    from PIL import ImageOps

    pixels = np.zeros((17, 17), np.uint8)
    up = {(0, -1): (0, 8), (0, 1): (16, 8), (-1, 0): (8, 0), (1, 0): (8, 16)}  # row and column of that edge's middle
    file = tmp_path / "a.png"
    for row, column in up.values():
        pixels[row, column] = 1 + row + column // 16
    Image.fromarray(pixels).save(file, exif=exif(orientation=orientation))
    with Image.open(file) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    assert shown[0, 8] == pixels[up[up_in_picture(file)]]


def test_a_lens_is_size_make_and_focal_length(tmp_path):
    a, b = (picture(tmp_path / f"{name}.jpg", seed=name, exif=exif()) for name in (1, 2))
    assert lens(a) == lens(b)
    assert lens(a) != lens(picture(tmp_path / "3.jpg", exif=exif(focal=8.0)))
    assert lens(a) != lens(picture(tmp_path / "4.jpg", size=(16, 24), exif=exif()))
    assert lens(a) != lens(picture(tmp_path / "5.jpg"))


def test_blur_lowers_sharpness():
    from PIL import ImageFilter

    sharp = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8)).resize((1440, 1080))
    blurred = [np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 2, 8)]
    assert sharpness(blurred[0]) > sharpness(blurred[1]) > sharpness(blurred[2]) > 0


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds at ten frames a second: every fifth frame is sharp, and the frame's number is its brightness."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    file = tmp_path_factory.mktemp("video") / "walk.mp4"
    writer = ffmpeg.write_frames(str(file), (96, 64), fps=10, macro_block_size=8, quality=9)
    writer.send(None)
    noise = np.random.default_rng(0).integers(-40, 40, (64, 96, 1))
    for k in range(40):
        writer.send((100 + k + noise * (k % 5 == 3)).repeat(3, 2).astype(np.uint8).tobytes())
    writer.close()
    return file


def test_the_sharpest_frames_of_a_video_are_taken(video, tmp_path):
    pick_frames(video, tmp_path, 8, SILENT)
    assert names_in(tmp_path) == [f"frame_{k:05d}.jpg" for k in range(3, 40, 5)]
    for k in (3, 38):
        with Image.open(tmp_path / f"frame_{k:05d}.jpg") as frame:
            assert frame.size == (96, 64) and abs(np.asarray(frame, float).mean() - 100 - k) < 2


def test_short_videos_give_more_frames_a_second_and_never_more_than_there_are(video, tmp_path):
    pick_frames(video, tmp_path, 120, SILENT)
    assert len(names_in(tmp_path)) == 24
    (tmp_path / "few").mkdir()
    pick_frames(video, tmp_path / "few", 3, SILENT)
    assert len(names_in(tmp_path / "few")) == 3


def test_frames_of_a_video_without_a_steady_rate_are_taken_once(video, tmp_path):
    """Two seconds at ten frames a second, then one frame a second, as telephones save light: no gap is filled up."""
    import imageio_ffmpeg

    slow, kept = tmp_path / "slow.mp4", "select=lt(n\\,20)+not(mod(n\\,10))"
    words = ["-loglevel", "error", "-i", str(video), "-vf", kept, "-fps_mode", "vfr", str(slow)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words], check=True, capture_output=True)
    (tmp_path / "out").mkdir()
    pick_frames(slow, tmp_path / "out", 8, SILENT)
    numbers = [int(name[6:11]) for name in names_in(tmp_path / "out")]
    assert len(numbers) == 8 and max(numbers) < 22


def test_what_is_no_video_is_refused(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    picture(tmp_path / "a.png")
    for data in (b"nothing of the kind", b"", (tmp_path / "a.png").read_bytes()):
        (tmp_path / "a.mp4").write_bytes(data)
        with pytest.raises(SceneError, match="can't be read as a video"):
            pick_frames(tmp_path / "a.mp4", tmp_path, 10, SILENT)


def test_lists_of_other_files_are_no_videos(video, tmp_path):
    """ffmpeg goes by the content: what such a list names may be any file here, or an address."""
    (tmp_path / "secret.mp4").write_bytes(video.read_bytes())
    concat = "ffconcat version 1.0\nfile secret.mp4\n"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    for text in (concat, hls):
        (tmp_path / "a.mp4").write_text(text)
        with pytest.raises(SceneError, match="can't be read as a video"):
            pick_frames(tmp_path / "a.mp4", tmp_path, 10, SILENT)


def test_what_is_left_of_a_cut_video_is_taken(video, tmp_path):
    import imageio_ffmpeg

    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-c:v", "mjpeg", str(whole)], check=True)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "out").mkdir()
    pick_frames(cut, tmp_path / "out", 4, SILENT)
    numbers = [int(name[6:11]) for name in names_in(tmp_path / "out")]
    assert len(numbers) == 4 and 10 < max(numbers) < 25


def test_frames_of_absurd_size_and_none_at_all_are_refused(video, tmp_path, monkeypatch):
    import imageio_ffmpeg

    limits = [*footage.WITHIN_LIMITS[:-1], str(96 * 64 - 1)]
    with monkeypatch.context() as m:
        m.setattr(footage, "WITHIN_LIMITS", limits)
        with pytest.raises(SceneError, match=r"can't be read as a video \(Picture size 96x64 exceeds"):
            pick_frames(video, tmp_path, 10, SILENT)
    words = ["-v", "error", "-i", str(video), "-frames:v", "0", "-c", "copy", str(tmp_path / "none.mkv")]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words], check=True)
    with pytest.raises(SceneError, match="can't be read as a video"):
        pick_frames(tmp_path / "none.mkv", tmp_path, 10, SILENT)
    assert sharpness(np.zeros((1, 1), np.uint8)) == sharpness(np.zeros((2, 5000), np.uint8)) == 0.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of another process")
def test_what_needs_too_much_memory_is_refused(tmp_path, monkeypatch):
    """A small file may have ffmpeg keep sixteen frames of any size."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    words = ["-v", "error", "-f", "lavfi", "-i", "color=size=1920x1600:rate=10:duration=2", "-c:v", "libx264", "-preset", "ultrafast"]
    subprocess.run([ffmpeg.get_ffmpeg_exe(), *words, "-refs", "16", str(tmp_path / "a.mp4")], check=True)
    assert (tmp_path / "a.mp4").stat().st_size < 50_000
    monkeypatch.setattr(footage, "MOST_MEMORY", 100 << 20)
    monkeypatch.setattr(footage, "MOST_SILENCE", 2)  # it doesn't always end by itself
    with pytest.raises(SceneError, match="more than 100 MiB of memory"):
        pick_frames(tmp_path / "a.mp4", tmp_path, 10, SILENT)
    monkeypatch.undo()
    pick_frames(tmp_path / "a.mp4", tmp_path, 3, SILENT)
    assert len(names_in(tmp_path)) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert find_footage(tmp_path) is None and find_footage(tmp_path / "a.mp4") is None


@pytest.mark.skipif(sys.platform == "win32", reason="stands in a shell script for ffmpeg")
def test_a_silent_ffmpeg_is_ended(video, tmp_path, monkeypatch):
    """One that neither ends nor says anything."""
    import imageio_ffmpeg

    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(tmp_path / "ffmpeg"))
    monkeypatch.setattr(footage, "MOST_SILENCE", 1)
    with pytest.raises(SceneError, match="ffmpeg said nothing for 1 s"):
        pick_frames(video, tmp_path, 3, SILENT)


def test_who_stops_looking_ends_ffmpeg(video):
    frames = footage.sharpest_frames(video, 4, SILENT)
    assert next(frames)[1].shape == (64, 96, 3)
    frames.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(SceneError, match=r"pip install 'fastsurf\[video\]'"):
        pick_frames(tmp_path / "a.mp4", tmp_path, 10, SILENT)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.heic").touch()
    with pytest.raises(SceneError, match=r"pip install 'fastsurf\[heic\]'"):
        gathered(tmp_path / "in", tmp_path / "out")
