"""Every dialect on a ring of cameras that is written here, and every way in which a folder can be unusable."""

import json
from pathlib import Path

import numpy as np
import pytest
import rings

from fastsurf.cameras import world_to_pixels
from fastsurf.errors import SceneError, UsageError
from fastsurf.formats import FORMATS, colmap, load, sniff

POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
WRITERS = {
    "transforms": rings.transforms, "idr": rings.idr, "unisurf": rings.unisurf, "colmap": rings.colmap, "llff": rings.llff,
    "middlebury": rings.middlebury, "blendedmvs": rings.blendedmvs, "strecha": rings.strecha,
}  # fmt: skip


def edit(file, change):
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def edit_poses(folder, change):
    """Change every transform_matrix of transforms.json."""
    def change_all(tree):
        for frame in tree["frames"]:
            frame["transform_matrix"] = change(np.array(frame["transform_matrix"])).tolist()

    edit(folder / "transforms.json", change_all)


def assert_ring(capture, principal=rings.OFF_MIDDLE, scale=1.0):
    """Known points fall on their pixels, in photographs `scale` times the stated size."""
    assert len(capture.views) == len(rings.poses())
    for view, c2w in zip(capture.views, rings.poses(), strict=True):
        np.testing.assert_allclose(world_to_pixels(view, POINTS), scale * rings.expected(POINTS, c2w, principal), atol=1e-5)
        np.testing.assert_allclose(view.c2w, c2w, atol=1e-9)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_says_the_same(tmp_path, name):
    principal = WRITERS[name](tmp_path)
    capture = load(tmp_path)
    assert capture.format == ("idr" if name == "unisurf" else name)
    assert capture.path == tmp_path
    assert_ring(capture, principal)


@pytest.mark.parametrize("factor", [0.5, 2 / 3, 2])
@pytest.mark.parametrize("name", ["transforms", "colmap", "llff", "strecha"])
def test_cameras_stated_for_another_size_are_rescaled(tmp_path, name, factor):
    size = (round(rings.WIDTH * factor), round(rings.HEIGHT * factor))
    principal = WRITERS[name](tmp_path, size=size)
    capture = load(tmp_path)
    assert_ring(capture, principal, factor)
    assert f"intrinsics were for 48x36, rescaled to {size[0]}x{size[1]} (5 of 5 photographs)" in capture.notes


@pytest.mark.parametrize("name", ["idr", "blendedmvs"])
def test_cameras_for_a_multiple_of_the_size_are_recognised_by_their_principal_point(tmp_path, name):
    principal = WRITERS[name](tmp_path, size=(rings.WIDTH // 2, rings.HEIGHT // 2))
    capture = load(tmp_path)
    assert_ring(capture, principal, 0.5)
    assert "intrinsics were for 48x36" in " ".join(capture.notes)


def test_principal_points_that_fit_no_size_are_refused(tmp_path):
    rings.idr(tmp_path, size=(30, 23))
    with pytest.raises(SceneError, match=r"principal point \(25, 17\) is far off the middle of 30x23"):
        load(tmp_path)


def test_a_photograph_of_another_shape_is_refused(tmp_path):
    rings.transforms(tmp_path, size=(48, 30))
    with pytest.raises(SceneError, match="48x30 but its camera is for 48x36, another shape"):
        load(tmp_path)
    rings.transforms(tmp_path, size=(36, 48))
    with pytest.raises(SceneError, match="turned by 90 degrees"):
        load(tmp_path)


# transforms.json


def without(tree, *keys):
    return {key: value for key, value in tree.items() if key not in keys}


def test_transforms_intrinsics_of_a_frame_win(tmp_path):
    own = {"fl_x": rings.FOCAL, "cx": rings.OFF_MIDDLE[0]}
    rings.transforms(tmp_path, top={**rings.intrinsics(), "fl_x": 1.0, "cx": 3.0}, frame=lambda i: own)
    assert_ring(load(tmp_path))


def test_transforms_intrinsics_may_be_in_frames_alone(tmp_path):
    rings.transforms(tmp_path, top={}, frame=lambda i: rings.intrinsics())
    assert_ring(load(tmp_path))


def test_transforms_angle_alone_and_floats_for_size(tmp_path):
    angle = 2 * np.arctan(rings.WIDTH / 2 / rings.FOCAL)
    rings.transforms(tmp_path, top={"camera_angle_x": angle})
    assert_ring(load(tmp_path), rings.MIDDLE)
    rings.transforms(tmp_path, top={"camera_angle_x": angle, "w": 48.0, "h": 36.0}, size=(24, 18))
    assert_ring(load(tmp_path), rings.MIDDLE, 0.5)


def test_transforms_angle_y(tmp_path):
    rings.transforms(tmp_path, top={"camera_angle_x": 0.7, "camera_angle_y": 0.5})
    fx, fy = load(tmp_path).views[0].camera.focal
    assert 2 * np.arctan(24 / fx) == pytest.approx(0.7)
    assert 2 * np.arctan(18 / fy) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "keys, model, distortion",
    [
        ({"k1": 0.1, "k2": -0.02, "p1": 0.001, "p2": 0.002}, "OPENCV", (0.1, -0.02, 0.001, 0.002)),
        ({"k1": 0.1, "camera_model": "OPENCV"}, "OPENCV", (0.1, 0, 0, 0)),
        ({"k1": 0, "k2": 0, "p1": 0, "p2": 0, "camera_model": "OPENCV"}, "PINHOLE", ()),
        ({"k1": 0.1, "k2": -0.02, "k3": 0.03, "p1": 0.001, "p2": 0.002}, "FULL_OPENCV", (0.1, -0.02, 0.001, 0.002, 0.03, 0, 0, 0)),
        ({"k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE", (0.1, 0.2, 0.3, 0.4)),
        ({"k1": 0.1, "is_fisheye": True}, "OPENCV_FISHEYE", (0.1, 0, 0, 0)),
        ({"distortion_params": [0.1, -0.02, 0, 0, 0.001, 0.002]}, "OPENCV", (0.1, -0.02, 0.001, 0.002)),
    ],
)
def test_transforms_distortion(tmp_path, keys, model, distortion):
    rings.transforms(tmp_path, top={**rings.intrinsics(), **keys})
    shared = load(tmp_path).views[0].camera
    rings.transforms(tmp_path, frame=lambda i: keys)
    assert load(tmp_path).views[0].camera == shared
    assert shared.model == model
    assert shared.params[4:] == distortion


@pytest.mark.parametrize("written", ["./images/{:03d}", "images/{:03d}", "images/{:03d}.png", ".\\images\\{:03d}.png"])
def test_transforms_file_paths(tmp_path, written):
    rings.transforms(tmp_path)
    edit(tmp_path / "transforms.json", lambda t: [f.update(file_path=written.format(i)) for i, f in enumerate(t["frames"])])
    capture = load(tmp_path)
    assert_ring(capture)
    assert [view.name for view in capture.views] == rings.names(5)


def test_transforms_extensions_in_capitals_and_dots_in_names(tmp_path):
    images = [f"images/frame.{i}.5.JPG" for i in range(5)]
    rings.transforms(tmp_path, images=images)
    edit(tmp_path / "transforms.json", lambda t: [f.update(file_path=f["file_path"][:-4]) for f in t["frames"]])
    assert [view.name for view in load(tmp_path).views] == images


def test_transforms_split_is_held_out(tmp_path):
    for split in ("train", "test", "val"):
        rings.transforms(tmp_path, name=f"transforms_{split}.json", images=rings.names(5, split))
    capture = load(tmp_path)
    assert [view.split for view in capture.views] == ["train"] * 5 + ["test"] * 5
    assert {Path(view.name).parent.name for view in capture.views} == {"train", "test"}
    (tmp_path / "transforms_test.json").unlink()
    assert {view.name.split("/")[0]: view.split for view in load(tmp_path).views} == {"train": "train", "val": "test"}


def test_transforms_own_lists_of_the_split(tmp_path):
    rings.transforms(tmp_path, top={**rings.intrinsics(), "train_filenames": rings.names(5)[:3], "test_filenames": rings.names(5)[3:],
                                    "val_filenames": rings.names(5)[2:]})  # fmt: skip
    assert [view.split for view in load(tmp_path).views] == ["train"] * 3 + ["test"] * 2


def test_transforms_alpha_is_the_mask(tmp_path):
    rings.transforms(tmp_path, mode="RGBA")
    assert load(tmp_path).alpha_masks
    assert not load(tmp_path, masks="ignore").alpha_masks
    for name in rings.names(5):
        rings.write_images(tmp_path, [name], mode="RGBA", alpha=255)
    capture = load(tmp_path)
    assert not capture.alpha_masks
    assert any("opaque" in note for note in capture.notes)


def test_transforms_mask_path(tmp_path):
    rings.transforms(tmp_path, frame=lambda i: {"mask_path": f"./cut/{i}"})
    rings.write_images(tmp_path / "cut", [f"{i}.png" for i in range(5)], mode="L")
    capture = load(tmp_path)
    assert [view.mask for view in capture.views] == [tmp_path / "cut" / f"{i}.png" for i in range(5)]
    assert not capture.alpha_masks
    assert {view.mask for view in load(tmp_path, masks="ignore").views} == {None}
    (tmp_path / "cut" / "3.png").unlink()
    with pytest.raises(SceneError, match=r"missing mask .*3 \(1 of 5\)"):
        load(tmp_path)


def test_transforms_notes_an_applied_transform(tmp_path):
    rings.transforms(tmp_path, top={**rings.intrinsics(), "applied_transform": [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]})
    capture = load(tmp_path)
    assert_ring(capture)
    assert any("applied_transform" in note for note in capture.notes)


def test_transforms_takes_points_of_a_colmap_model_with_the_same_cameras(tmp_path):
    rings.colmap(tmp_path, points=POINTS)
    rings.transforms(tmp_path)
    capture = load(tmp_path)
    assert capture.format == "transforms"
    np.testing.assert_allclose(capture.points, POINTS)
    assert "took transforms; the folder also holds colmap (--format picks one)" in capture.notes
    turn = np.array([[0.0, 1, 0, 0.5], [-1, 0, 0, 0], [0, 0, 1, 2]])  # what nerfstudio did to poses after COLMAP
    edit(tmp_path / "transforms.json", lambda t: t.update(applied_transform=turn.tolist()))
    assert load(tmp_path).points is None, "the poses are not those of the model, moved by the transform"
    square = np.vstack([turn, [0, 0, 0, 1]])
    edit_poses(tmp_path, lambda matrix: square @ matrix)
    np.testing.assert_allclose(load(tmp_path).points, POINTS @ turn[:, :3].T + turn[:, 3], atol=1e-12)


def test_transforms_leaves_out_photographs_that_were_sorted_out(tmp_path):
    rings.transforms(tmp_path)
    (tmp_path / "images/001.png").unlink()
    capture = load(tmp_path)
    assert [view.name for view in capture.views] == [name for name in rings.names(5) if "001" not in name]
    assert "left out 1 of 5 photographs whose files are missing: 001.png" in capture.notes


@pytest.mark.parametrize("name", ["transforms", "colmap", "middlebury", "blendedmvs", "strecha"])
def test_most_photographs_missing_is_an_error(tmp_path, name):
    WRITERS[name](tmp_path)
    for image in sorted(file for file in tmp_path.rglob("*") if file.suffix in (".png", ".jpg") and "masked" not in file.name)[:3]:
        image.unlink()
    with pytest.raises(SceneError, match="cameras name 5 photographs, 3 are missing, such as"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not readable as JSON"),
        ("[]", "want a list of frames, found none"),
        ('{"frames": []}', "want a list of frames, found none"),
        ('{"frames": [{"file_path": "a.png"}]}', "frame 0 wants file_path and transform_matrix, found file_path"),
    ],
)
def test_transforms_that_are_no_such_file(tmp_path, text, message):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(SceneError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "top, message",
    [
        ({"w": 48, "h": 36}, "want fl_x or camera_angle_x, found w, h"),
        ({**rings.intrinsics(), "fl_x": "60"}, "fl_x: want a finite number, found '60'"),
        ({**rings.intrinsics(), "cx": float("nan")}, "cx: want a finite number, found nan"),
        ({**rings.intrinsics(), "camera_model": "EQUIRECTANGULAR"}, "found EQUIRECTANGULAR"),
        ({**rings.intrinsics(), "k4": 0.1}, "found k4 = 0.1"),
        ({**rings.intrinsics(), "camera_model": "FULL_OPENCV", "k3": 0.1, "k6": 0.2}, "found k6 = 0.2"),
        ({**rings.intrinsics(), "mask_path": 5}, "mask_path of images/000.png: want text, found 5"),
        ({**rings.intrinsics(), "w": 0}, "want a size in pixels, found 0x36"),
    ],
)
def test_transforms_without_usable_intrinsics(tmp_path, top, message):
    rings.transforms(tmp_path, top=top)
    with pytest.raises(SceneError, match=message):
        load(tmp_path)


# poses


def scaled(matrix):
    return np.array(matrix) * [2, 2, 2, 1]


def mirrored(matrix):
    return np.array(matrix) * [-1, 1, 1, 1]


def sheared(matrix):
    return np.array(matrix) @ (np.eye(4) + np.diag([0.1, 0, 0], 1))


def not_a_number(matrix):
    return np.where(np.eye(4) > 0, np.nan, np.array(matrix))


def cut(matrix):
    return np.array(matrix)[:2]


@pytest.mark.parametrize(
    "harm, message",
    [
        (scaled, "pose of images/002.png: rotation is scaled by 2"),
        (sheared, "pose of images/002.png: rotation is not orthonormal"),
        (mirrored, "pose of images/002.png is left-handed"),
        (not_a_number, "pose of images/002.png is not finite"),
        (cut, "pose of images/002.png: want 3x4 or 4x4 numbers, found 2x4"),
    ],
)
def test_poses_that_are_no_rigid_motion_are_refused(tmp_path, harm, message):
    rings.transforms(tmp_path)
    edit(tmp_path / "transforms.json", lambda t: t["frames"][2].update(transform_matrix=harm(t["frames"][2]["transform_matrix"]).tolist()))
    with pytest.raises(SceneError, match=message):
        load(tmp_path)


def test_rounded_rotations_become_orthonormal(tmp_path):
    rings.transforms(tmp_path)
    edit_poses(tmp_path, lambda matrix: np.round(matrix, 4))
    for view in load(tmp_path).views:
        np.testing.assert_allclose(view.c2w[:, :3] @ view.c2w[:, :3].T, np.eye(3), atol=1e-12)


def test_one_photograph_is_refused(tmp_path):
    rings.transforms(tmp_path, n=1)
    with pytest.raises(SceneError, match="found 1; a surface needs at least two"):
        load(tmp_path)


def test_cameras_on_one_point_are_refused(tmp_path):
    rings.transforms(tmp_path)
    edit_poses(tmp_path, lambda matrix: np.array(rings.opengl(rings.poses()[0])))
    with pytest.raises(SceneError, match="all 5 cameras stand on one point"):
        load(tmp_path)


def test_an_unreadable_photograph_is_named(tmp_path):
    rings.transforms(tmp_path)
    (tmp_path / "images/001.png").write_bytes(b"no picture")
    with pytest.raises(SceneError, match=r"001\.png can't be read as an image"):
        load(tmp_path)


# masks


def test_a_masks_folder_is_found_by_stem_or_by_whole_name(tmp_path):
    rings.transforms(tmp_path)
    rings.write_images(tmp_path, [f"masks/{i:03d}.jpg" for i in range(5)], mode="L")
    assert [view.mask.name for view in load(tmp_path).views] == [f"{i:03d}.jpg" for i in range(5)]
    for file in (tmp_path / "masks").iterdir():
        file.rename(file.with_name(f"{file.stem}.png.png"))  # COLMAP's way
    assert [view.mask.name for view in load(tmp_path).views] == [f"{i:03d}.png.png" for i in range(5)]


def test_a_masks_folder_of_other_photographs_is_none_of_ours(tmp_path):
    rings.transforms(tmp_path, mode="RGBA")
    rings.write_images(tmp_path, [f"mask/other_{i}.png" for i in range(5)], mode="L")
    capture = load(tmp_path)
    assert capture.alpha_masks
    assert capture.views[0].mask is None


def test_some_masks_missing_is_an_error(tmp_path):
    rings.transforms(tmp_path)
    rings.write_images(tmp_path, [f"masks/{i:03d}.png" for i in range(4)], mode="L")
    with pytest.raises(SceneError, match=r"masks: no mask for images/004\.png \(1 of 5 missing\)"):
        load(tmp_path)
    assert load(tmp_path, masks="ignore").views[0].mask is None


def test_masks_of_a_chosen_folder(tmp_path):
    rings.transforms(tmp_path, mode="RGBA")
    rings.write_images(tmp_path, [f"mine/images/{i:03d}.png" for i in range(5)], mode="L")
    for folder in ("mine", str(tmp_path / "mine")):
        capture = load(tmp_path, masks=folder)
        assert capture.views[4].mask == tmp_path / "mine/images/004.png"
        assert not capture.alpha_masks
    with pytest.raises(SceneError, match="want auto, ignore or a folder, found 'yours'"):
        load(tmp_path, masks="yours")


@pytest.mark.parametrize("name", ["{}.heic", "{}.HEIC", "{}.webp", "{}.jpg"])
def test_masks_may_be_named_as_photographs_were_before_they_were_converted(tmp_path, name):
    rings.transforms(tmp_path, images=[f"images/{i}_a.jpg" for i in range(5)])
    rings.write_images(tmp_path, [f"cut/{name.format(f'{i} a')}.png" for i in range(5)], mode="L")
    assert [view.mask.name for view in load(tmp_path, masks="cut").views] == [f"{name.format(f'{i} a')}.png" for i in range(5)]


def test_a_mask_for_two_photographs_is_refused(tmp_path):
    images = [f"{side}/{i}.png" for side in ("left", "right") for i in range(3)]
    rings.transforms(tmp_path, n=6, images=images)
    rings.write_images(tmp_path, [f"masks/{i}.png" for i in range(3)], mode="L")
    with pytest.raises(SceneError, match="would be the mask of 2 photographs"):
        load(tmp_path)
    rings.write_images(tmp_path, [f"masks/{image}" for image in images], mode="L")
    assert [view.mask.relative_to(tmp_path).as_posix() for view in load(tmp_path).views] == [f"masks/{image}" for image in images]


def test_masks_of_another_shape_are_refused(tmp_path):
    rings.transforms(tmp_path)
    rings.write_images(tmp_path, [f"masks/{i:03d}.png" for i in range(5)], mode="L", size=(96, 72))
    assert load(tmp_path).views[0].mask is not None
    rings.write_images(tmp_path, ["masks/003.png"], mode="L", size=(96, 60))
    with pytest.raises(SceneError, match=r"003\.png is 96x60, its photograph 48x36"):
        load(tmp_path)


# IDR


def test_idr_masks_in_sorted_order(tmp_path):
    rings.idr(tmp_path)
    rings.write_images(tmp_path, [f"mask/m{i}.png" for i in range(5)], mode="L")
    for hidden in (tmp_path / "mask/._m0.png", tmp_path / "mask/._m1.png"):  # that macOS leaves on other people's disks
        hidden.write_bytes(b"no picture")
    assert [view.mask.name for view in load(tmp_path).views] == [f"m{i}.png" for i in range(5)]


def test_idr_the_sign_of_a_projection_is_free(tmp_path):
    rings.idr(tmp_path, sign=-3.0)
    assert_ring(load(tmp_path))


def test_idr_states_the_unit_sphere(tmp_path):
    rings.idr(tmp_path)
    center, radius = load(tmp_path).box
    np.testing.assert_allclose(center, [0.1, 0.2, 0.3])
    assert radius == 1.5


def test_idr_principal_points_in_the_exact_middle_have_centres_at_half_integers(tmp_path):
    rings.idr(tmp_path, principal=rings.MIDDLE, offset=0.0)
    capture = load(tmp_path)
    assert_ring(capture, rings.MIDDLE)
    assert any("half integers" in note for note in capture.notes)


def test_idr_middles_of_integer_pixels_are_integers(tmp_path):
    rings.idr(tmp_path, principal=rings.MIDDLE, offset=-0.5)  # ((w - 1) / 2, (h - 1) / 2)
    capture = load(tmp_path)
    assert_ring(capture, rings.MIDDLE)
    assert any("at integers" in note for note in capture.notes)


def test_idr_prefers_cameras_sphere(tmp_path):
    rings.idr(tmp_path)
    rings.idr(tmp_path, name="cameras_sphere.npz")
    rings.idr(tmp_path, name="cameras_large.npz")
    assert "took cameras_sphere.npz, not cameras.npz, cameras_large.npz beside it" in load(tmp_path).notes
    assert "took cameras_large.npz, not cameras.npz, cameras_sphere.npz beside it" in load(tmp_path / "cameras_large.npz").notes


def test_idr_fewer_photographs_than_cameras_are_matched_by_number(tmp_path):
    rings.idr(tmp_path)
    (tmp_path / "image/001.png").unlink()
    capture = load(tmp_path)
    for view, i in zip(capture.views, (0, 2, 3, 4), strict=True):
        np.testing.assert_allclose(view.c2w, rings.poses()[i], atol=1e-9)
    (tmp_path / "image/002.png").rename(tmp_path / "image/two.png")
    with pytest.raises(SceneError, match=r"5 cameras in cameras\.npz but 4 photographs"):
        load(tmp_path)


def test_idr_a_stated_size_needs_no_guess(tmp_path):
    """DTU's camera_mat maps pixels to [-1, 1]; the principal point alone would fit no whole factor."""
    rings.idr(tmp_path, size=(28, 21))
    with pytest.raises(SceneError, match="is far off the middle of 28x21"):
        load(tmp_path)
    with np.load(tmp_path / "cameras.npz") as archive:
        matrices = dict(archive)
    to_unit = np.array([[2 / rings.WIDTH, 0, -1, 0], [0, 2 / rings.HEIGHT, -1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.savez(tmp_path / "cameras.npz", **matrices, **{f"camera_mat_{i}": to_unit for i in range(5)})
    assert_ring(load(tmp_path), scale=28 / rings.WIDTH)


def test_idr_the_scene_behind_every_camera_is_refused(tmp_path):
    rings.idr(tmp_path)
    with np.load(tmp_path / "cameras.npz") as archive:
        matrices = dict(archive)
    mirror = np.diag([1.0, 1.0, -1.0, 1.0])
    np.savez(tmp_path / "cameras.npz", **{key: m @ mirror if "world" in key else m for key, m in matrices.items()})
    with pytest.raises(SceneError, match="behind every camera, so the projections are left-handed"):
        load(tmp_path)


@pytest.mark.parametrize(
    "matrices, message",
    [
        ({"poses": np.eye(4)}, "want world_mat_0, world_mat_1, ...; found poses"),
        ({"world_mat_0": np.eye(2)}, "world_mat_0 wants 4x4 numbers, found 2x2"),
        ({f"world_mat_{i}": np.eye(4) for i in range(5)}, r"\[R\|t\] without intrinsics"),
        ({f"world_mat_{i}": np.full((4, 4), np.nan) for i in range(5)}, "world_mat of 000.png is not finite or singular"),
        ({f"world_mat_{i}": np.diag([50.0, 50.0, 0.0, 1.0]) for i in range(5)}, "not finite or singular"),
        ({f"world_mat_{i}": np.array([[60.0, 9, 24], [0, 60, 18], [0, 0, 1]]) @ np.eye(3, 4) for i in range(5)}, "skew of 9"),
    ],
)
def test_idr_files_that_are_no_projections(tmp_path, matrices, message):
    rings.idr(tmp_path)
    np.savez(tmp_path / "cameras.npz", **matrices)
    with pytest.raises(SceneError, match=message):
        load(tmp_path)


def test_idr_cameras_without_photographs(tmp_path):
    rings.idr(tmp_path)
    for image in (tmp_path / "image").iterdir():
        image.unlink()
    with pytest.raises(SceneError, match="found cameras but no photographs; looked in image"):
        load(tmp_path)
    (tmp_path / "cameras.npz").write_bytes(b"no archive")
    with pytest.raises(SceneError, match="not readable as npz"):
        load(tmp_path)


# COLMAP


@pytest.mark.parametrize("model", ["sparse/0", "sparse", "colmap/sparse/0", "dense/sparse", "dense/0/sparse", "."])
@pytest.mark.parametrize("images", ["images", "."])
def test_colmap_folders(tmp_path, model, images):
    rings.colmap(tmp_path, model=model, images=images, points=POINTS)
    capture = load(tmp_path)
    assert_ring(capture)
    np.testing.assert_allclose(capture.points, POINTS)


def test_colmap_a_model_named_directly_finds_its_photographs(tmp_path):
    rings.colmap(tmp_path)
    capture = load(tmp_path / "sparse/0")
    assert_ring(capture)
    assert capture.views[0].image == tmp_path / "images/000.png"


def test_colmap_takes_the_sub_model_with_most_images(tmp_path):
    rings.colmap(tmp_path, n=3)
    rings.colmap(tmp_path, n=5, model="sparse/1")
    capture = load(tmp_path)
    assert_ring(capture)
    assert "took sub-model 1 of 2 (images in 0: 3, 1: 5)" in capture.notes


def test_colmap_images_in_sub_folders_and_several_cameras(tmp_path):
    rings.colmap(tmp_path)
    where = tmp_path / "sparse/0"
    text = (where / "images.txt").read_text().replace(" 7 003.png", " 9 left/a.png")
    (where / "images.txt").write_text(text)
    (where / "cameras.txt").write_text((where / "cameras.txt").read_text() + "9 SIMPLE_RADIAL 96 72 120 50 34 0.01\n")
    (tmp_path / "images/left").mkdir()
    (tmp_path / "images/003.png").rename(tmp_path / "images/left/a.png")
    view = next(view for view in load(tmp_path).views if view.name == "left/a.png")
    assert view.image == tmp_path / "images/left/a.png"
    np.testing.assert_allclose(view.c2w, rings.poses()[3], atol=1e-9)
    assert view.camera.params == (60, 25, 17, 0.01)  # stated for twice the photograph's size


@pytest.mark.parametrize(
    "camera",
    ["SIMPLE_PINHOLE 48 36 60 25 17", "SIMPLE_RADIAL 48 36 60 25 17 0.05", "RADIAL 48 36 60 25 17 0.05 -0.02",
     "OPENCV 48 36 60 61 25 17 0.05 -0.02 0.001 0.002", "OPENCV_FISHEYE 48 36 60 61 25 17 0.05 -0.02 0.001 0.002",
     "FULL_OPENCV 48 36 60 61 25 17 0.05 -0.02 0.001 0.002 0.01 0 0 0", "FOV 48 36 60 61 25 17 0.2"],
)  # fmt: skip
@pytest.mark.parametrize("binary", [False, True])
def test_colmap_models_are_what_pycolmap_reads(tmp_path, camera, binary):
    import pycolmap

    rings.colmap(tmp_path, camera=camera, points=POINTS, tracks=[(0, 2, 4), (1, 2), (0, 1, 2, 3)])
    where = tmp_path / "sparse/0"
    theirs = pycolmap.Reconstruction(str(where))
    if binary:
        theirs.write_binary(str(where))
        for file in where.glob("*.txt"):
            file.unlink()
    ours = colmap.read(where)
    np.testing.assert_array_equal(ours.points, [point.xyz for _, point in sorted(theirs.points3D.items())])
    assert sorted(ours.images) == sorted(image.name for image in theirs.images.values())
    for image in theirs.images.values():
        found, c2w = ours.images[image.name]
        assert (found.model, found.width, found.height) == (image.camera.model.name, image.camera.width, image.camera.height)
        assert found.params == tuple(image.camera.params) == tuple(float(x) for x in camera.split()[3:])
        np.testing.assert_allclose(c2w, image.cam_from_world().inverse().matrix(), atol=1e-12)
    np.testing.assert_array_equal(load(tmp_path).sightings, [[0, 0], [0, 2], [1, 2], [2, 0], [2, 2], [3, 2], [4, 0]])  # that three see


def test_colmap_unreadable_models_are_named_and_nothing_is_printed(tmp_path, capfd):
    rings.colmap(tmp_path)
    (tmp_path / "sparse/0/images.txt").write_text("1 not a number 7 000.png\n\n")
    with pytest.raises(SceneError, match="sparse/0: not readable as a COLMAP model"):
        load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_colmap_photographs_elsewhere(tmp_path):
    rings.colmap(tmp_path)
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(SceneError, match=r"names 5 photographs such as 000\.png, found none; looked in .*sparse/0"):
        load(tmp_path)


def test_colmap_unsupported_camera_models_are_named(tmp_path):
    rings.colmap(tmp_path, camera="EQUIRECTANGULAR 48 36 48 36")
    with pytest.raises(SceneError, match="EQUIRECTANGULAR is not supported"):
        load(tmp_path)


# the others


def test_middlebury_states_a_box(tmp_path):
    rings.middlebury(tmp_path)
    assert load(tmp_path).box is None
    (tmp_path / "README.txt").write_text("The (tight) bounding box for the model is\n(-1.0 -2 0)\n(1 2e0 1.5)\n")
    center, radius = load(tmp_path).box
    np.testing.assert_allclose(center, [0, 0, 0.75])
    assert radius == 2


@pytest.mark.parametrize(
    "name, file, text, message",
    [
        ("middlebury", "ring_par.txt", "3\na.png 1 2\n", "want the number of images, then a line for each"),
        ("middlebury", "ring_par.txt", "", "found 'nothing' before 0 lines"),
        ("middlebury", "ring_par.txt", "2\n000.png 1 2\n001.png 1 2\n", "000.png wants 21 numbers"),
        ("middlebury", "ring_par.txt", "2\n000.png 1 x\n001.png 1 2\n", "want numbers, could not convert"),
        ("strecha", "gt_dense_cameras/001.png.camera", "1 2 3", "want 26 numbers"),
        ("blendedmvs", "cams/00000001_cam.txt", "extrinsic\n1 2 3\nintrinsic\n1", "want extrinsic and 16 numbers"),
        ("blendedmvs", "cams/00000001_cam.txt", "nothing", "want extrinsic and 16 numbers"),
    ],
)
def test_text_files_that_are_no_cameras(tmp_path, name, file, text, message):
    WRITERS[name](tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(SceneError, match=message):
        load(tmp_path)


def test_strecha_distortion_is_refused(tmp_path):
    rings.strecha(tmp_path)
    file = tmp_path / "gt_dense_cameras/002.png.camera"
    lines = file.read_text().splitlines()
    lines[3] = "0.1 0 0"
    file.write_text("\n".join(lines))
    with pytest.raises(SceneError, match=r"002\.png\.camera: want undistorted photographs"):
        load(tmp_path)


def test_llff_wants_a_row_for_each_photograph(tmp_path):
    rings.llff(tmp_path)
    (tmp_path / "images/002.png").unlink()
    with pytest.raises(SceneError, match=r"5 poses in poses_bounds\.npy but 4 photographs"):
        load(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.zeros((4, 12)))
    with pytest.raises(SceneError, match="want rows of 17 numbers, found 4x12"):
        load(tmp_path)
    np.savez(tmp_path / "poses.npz", poses=np.zeros((4, 17)))
    with pytest.raises(SceneError, match="want rows of 17 numbers, found 0"):
        load(tmp_path / "poses.npz", format="llff")
    (tmp_path / "poses_bounds.npy").write_bytes(b"no array")
    with pytest.raises(SceneError, match="not readable as npy"):
        load(tmp_path)


# which format


def test_the_preferred_format_is_taken_and_the_others_named(tmp_path):
    for name in ("idr", "colmap", "llff", "transforms"):
        WRITERS[name](tmp_path)
    assert sniff(tmp_path) == ["transforms", "colmap", "idr", "llff"]
    capture = load(tmp_path)
    assert capture.format == "transforms"
    assert capture.notes[0] == "took transforms; the folder also holds colmap, idr, llff (--format picks one)"
    for name in ("idr", "colmap", "llff", "transforms"):
        assert load(tmp_path, format=name).format == name


def test_an_unknown_format_gets_the_nearest_name(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'colmpa'; did you mean colmap"):
        load(tmp_path, format="colmpa")
    with pytest.raises(UsageError, match="unknown format 'xyz'; known: transforms, colmap, idr"):
        load(tmp_path, format="xyz")


def test_nothing_found_says_what_was_looked_for_and_what_is_there(tmp_path):
    with pytest.raises(SceneError, match="no such folder"):
        load(tmp_path / "away")
    with pytest.raises(SceneError, match="found nothing"):
        load(tmp_path)
    (tmp_path / "notes.md").touch()
    (tmp_path / "later").mkdir()
    with pytest.raises(SceneError) as error:
        load(tmp_path)
    for format in FORMATS.values():
        assert format.WANTED in str(error.value)
    assert "found 1 .md, later/" in str(error.value)
    with pytest.raises(SceneError, match=r"looked for idr: cameras_sphere\.npz or cameras\.npz; found 1 \.md, later/$"):
        load(tmp_path, format="idr")


def test_photographs_alone_are_told_how_to_get_cameras(tmp_path):
    rings.write_images(tmp_path, rings.names(5))
    with pytest.raises(SceneError, match=f"Photographs need cameras: `fastsurf poses {tmp_path} -o {tmp_path}_scene` finds them"):
        load(tmp_path)
    with pytest.raises(SceneError, match=f"`fastsurf poses {tmp_path}/images -o {tmp_path}/images_scene` finds them"):
        load(tmp_path / "images")


def test_cameras_one_level_down_are_pointed_at(tmp_path):
    (tmp_path / "fox").mkdir()
    rings.transforms(tmp_path / "fox")
    with pytest.raises(SceneError, match=f"Cameras are one level down: try {tmp_path}/fox"):
        load(tmp_path)


def test_a_camera_file_may_be_named_itself(tmp_path):
    rings.transforms(tmp_path, name="transforms_mine.json")
    rings.llff(tmp_path, name="poses_bounds_other.npy")
    assert load(tmp_path / "transforms_mine.json").format == "transforms"
    assert load(tmp_path / "poses_bounds_other.npy").format == "llff"
    with pytest.raises(SceneError, match="want a folder of photographs with cameras, or a camera file"):
        load(tmp_path / "images/000.png")
