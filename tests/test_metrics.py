"""Scores against known distances, an independent SSIM, and the stated meaning of every number."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastsurf.cameras import Camera, View
from fastsurf.errors import MeshError, SceneError, UsageError
from fastsurf.mesh import Mesh
from fastsurf.meshio import read_mesh, write_mesh
from fastsurf.metrics import Truth, distance_to, measure, picture_scores, psnr, read_thresholds, read_truth, score_mesh, ssim, sweep
from fastsurf.shade import look_at


def ball(radius: float = 1.0, center: tuple[float, float, float] = (0, 0, 0), subdivisions: int = 5) -> Mesh:
    import trimesh

    unit = trimesh.creation.icosphere(subdivisions=subdivisions)
    vertices = np.array(unit.vertices)
    return Mesh(vertices * radius + center, np.array(unit.faces, np.int32), vertices.astype(np.float32))


def joined(a: Mesh, b: Mesh) -> Mesh:
    faces = np.concatenate([a.faces, b.faces + np.int32(len(a.vertices))])
    return Mesh(np.concatenate([a.vertices, b.vertices]), faces, np.concatenate([a.normals, b.normals]))


def ring(n: int, distance: float = 4.0) -> list[View]:
    camera = Camera("PINHOLE", 200, 200, (220.0, 220.0, 100.0, 100.0))
    turns = np.linspace(0, 2 * np.pi, n, endpoint=False)
    eyes = [distance * np.array([np.cos(t), np.sin(t), 0.6 * np.cos(3 * t)]) for t in turns]
    return [View(f"{k}", Path(f"{k}.png"), None, camera, look_at(eye, np.zeros(3)), "train") for k, eye in enumerate(eyes)]


def test_each_point_has_its_distance_in_any_company() -> None:
    """Near and far, in any order, alone: the same bits. Known for a plane square: its corner, its edge, its middle."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3000, 3)) * rng.choice([0.01, 1.0, 3.0], (3000, 1)) + (1, 0, 0)
    order = rng.permutation(len(points))
    for truth in (Truth(mesh=ball(subdivisions=3)), Truth(ball(subdivisions=4).vertices, ball(subdivisions=4).vertices)):
        distance = distance_to(truth)
        found = distance(points)
        np.testing.assert_array_equal(distance(points[order]), found[order])
        assert [distance(point[None])[0] for point in points[:3]] == found[:3].tolist()
        assert distance(points[:0]).shape == (0,)
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    square = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]], np.int32), np.zeros((4, 3), np.float32))
    known = np.array([[0.3, 0.6, 0.02], [0.5, -0.03, 0.0], [1.02, 1.02, 0.01], [0.5, 0.5, 9.0]])
    np.testing.assert_allclose(distance_to(Truth(mesh=square))(known), [0.02, 0.03, 0.03, 9.0], rtol=1e-2)


def test_psnr_is_minus_twenty_log_of_a_constant_error() -> None:
    a = np.full((20, 30, 3), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr(a, a) == float("inf")
    b = a.copy()
    b[:10] += 0.3
    mask = np.zeros((20, 30), bool)
    mask[10:] = True
    assert psnr(a, b, mask) == float("inf") > psnr(a, b)


def test_ssim_is_what_the_paper_defines() -> None:
    """Window by window with explicit weighted moments, equations 13 to 16 of Wang et al. 2004."""
    rng = np.random.default_rng(0)
    a = rng.random((16, 19, 3))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    y, x = np.mgrid[-5:6, -5:6]
    w = np.exp(-(x * x + y * y) / (2 * 1.5**2))
    w /= w.sum()
    values = []
    for i in range(16 - 10):
        for j in range(19 - 10):
            for c in range(3):
                p, q = a[i : i + 11, j : j + 11, c], b[i : i + 11, j : j + 11, c]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, 1 - a) < 0


@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (1, 1)])
def test_pictures_smaller_than_its_window_have_no_ssim(shape: tuple[int, int]) -> None:
    a = np.full((*shape, 3), 0.5)
    with pytest.raises(UsageError, match=f"11 pixels or more along each side, found {shape[1]}x{shape[0]}"):
        ssim(a, a)
    assert picture_scores(a, a + 0.1, np.ones(shape, bool)) == {"psnr": pytest.approx(20.0)}
    a = np.full((11, 11, 3), 0.5)
    assert picture_scores(a, a, np.ones((11, 11), bool)) == {"psnr": float("inf"), "ssim": pytest.approx(1)}


@pytest.mark.parametrize("offset", [0.005, -0.02])
def test_chamfer_of_offset_spheres_is_the_offset(offset: float) -> None:
    score = score_mesh(ball(1 + offset), Truth(mesh=ball()), samples=50_000)
    assert score["diagonal"] == pytest.approx(2 * np.sqrt(3), rel=1e-3)
    for name in ("chamfer", "accuracy", "completeness"):
        assert score[name] == pytest.approx(abs(offset), rel=0.03)
    assert score["chamfer_pct"] == pytest.approx(100 * score["chamfer"] / score["diagonal"])
    assert score["f_score"] == 1
    assert score["f_score_05"] == float(abs(offset) < 0.005 * score["diagonal"])
    assert score["normal_error_deg"] < 2


def test_equal_surfaces_score_nothing_however_sampled() -> None:
    score = score_mesh(ball(), Truth(mesh=ball()), samples=20_000)
    assert score["chamfer_pct"] < 4e-3 and score["f_score_05"] == 1


def test_truth_as_points_scores_as_truth_as_mesh() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(60_000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    mesh = ball(1.01)
    for truth in (Truth(points=normals, normals=normals), Truth(points=normals, normals=normals, mesh=ball())):
        assert score_mesh(mesh, truth, samples=50_000)["chamfer"] == pytest.approx(0.01, rel=0.05)
    bare = score_mesh(mesh, Truth(points=normals), samples=50_000)
    assert np.isnan(bare["normal_error_deg"])
    assert 0.01 < bare["accuracy"] < 0.015  # without normals the spacing of the points shows


def test_the_missing_half_costs_recall_and_the_invented_costs_precision() -> None:
    whole, half = ball(), ball()
    half = replace(half, faces=half.faces[(half.vertices[half.faces][:, :, 2] > 0).all(1)])
    missing, invented = score_mesh(half, Truth(mesh=whole), samples=50_000), score_mesh(whole, Truth(mesh=half), samples=50_000)
    assert missing["accuracy"] < 1e-3 < missing["completeness"]
    assert invented["completeness"] < 1e-3 < invented["accuracy"]
    assert missing["f_score"] == pytest.approx(2 * 0.51 / 1.51, abs=0.03)
    assert invented["f_score"] == pytest.approx(missing["f_score"], abs=0.05)


def test_normals_are_compared_by_angle_not_by_side() -> None:
    tilted = ball()
    inverted = replace(tilted, faces=tilted.faces[:, ::-1].copy())
    assert score_mesh(inverted, Truth(mesh=ball()), samples=20_000)["normal_error_deg"] < 2
    rough = replace(tilted, vertices=tilted.vertices * (1 + np.random.default_rng(0).normal(0, 0.01, (len(tilted.vertices), 1))))
    assert score_mesh(rough, Truth(mesh=ball()), samples=20_000)["normal_error_deg"] > 10


def test_a_sweep_steps_where_the_surface_lies() -> None:
    """A sphere 0.05 too large, with a half of the truth missing: precision goes from 0 to 1 at 0.05, recall to what is there."""
    half = ball(1.05)
    half = replace(half, faces=half.faces[(half.vertices[half.faces][:, :, 2] > -1e-9).all(1)])
    thresholds = read_thresholds("0.04, 0.06,1%,2%,20%")
    measured = measure(half, Truth(mesh=ball()), samples=50_000)
    below, above, one, two, wide = sweep(measured, thresholds)
    assert (below["threshold"], above["threshold"]) == (0.04, 0.06)
    assert one["threshold"] == pytest.approx(0.02 * np.sqrt(3), rel=1e-3) and one["percent"] == pytest.approx(1)
    assert above["percent"] == pytest.approx(100 * 0.06 / measured.diagonal)
    for row in (below, one):
        assert row["precision"] == row["recall"] == row["f1"] == 0
    for row in (above, two):
        assert row["precision"] == 1 and row["recall"] == pytest.approx(0.5, abs=0.03)
        assert row["f1"] == pytest.approx(2 * row["recall"] / (1 + row["recall"]))
    cosine = (1 + 1.05**2 - wide["threshold"] ** 2) / (2 * 1.05)  # of the angle from the rim at which the lower half ends to be near
    assert wide["recall"] == pytest.approx(0.5 + 0.5 * np.sqrt(1 - cosine**2), abs=0.01)


def test_distances_beyond_the_close_search_are_right_to_a_hundredth() -> None:
    """A shell 0.3 away is 8.7 % of the diagonal: beyond 3 % only fewer samples are searched."""
    for truth in (Truth(points=ball(subdivisions=6).vertices), Truth(mesh=ball())):
        far = measure(ball(1.3), truth, samples=20_000)
        assert far.to_true.mean() == pytest.approx(0.3, rel=0.01)
        assert far.precision(0.309) > 0.99 and far.precision(0.297) == 0


def test_nothing_found_is_nothing_at_every_threshold() -> None:
    thresholds = read_thresholds("1%,500%")
    for row in sweep(measure(ball(0.2, (0, 0, 50)), Truth(mesh=ball()), ring(4), samples=5_000), thresholds):
        assert row["precision"] == row["recall"] == row["f1"] == 0


@pytest.mark.parametrize("text", ["", "1%,", "x", "0", "-1%", "nan", "inf%", "1%%"])
def test_thresholds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"want lengths such as 0\.5%"):
        read_thresholds(text)


def test_what_no_camera_sees_neither_helps_nor_hurts() -> None:
    with_core = joined(ball(), ball(0.5))
    truth = Truth(mesh=ball())
    assert score_mesh(with_core, truth, samples=20_000)["f_score"] < 0.95
    seen = score_mesh(with_core, truth, ring(8), samples=20_000)
    assert seen["f_score"] > 0.999 and seen["accuracy"] < 1e-3
    beyond = replace(truth, region=(np.full(3, -1.1), np.full(3, 1.1), np.eye(4)))
    far = joined(ball(), ball(0.3, (3, 0, 0)))
    assert score_mesh(far, truth, samples=20_000)["accuracy"] > 0.05 > 1e-3 > score_mesh(far, beyond, samples=20_000)["accuracy"]


def test_a_mesh_that_nobody_sees_scores_zero() -> None:
    score = score_mesh(ball(0.2, (0, 0, 50)), Truth(mesh=ball()), ring(4), samples=5_000)
    assert score["f_score"] == 0 and score["chamfer"] == float("inf")


def test_scores_repeat_with_their_seed() -> None:
    a, b, c = (score_mesh(ball(1.01), Truth(mesh=ball()), samples=5_000, seed=seed) for seed in (1, 1, 2))
    assert a == b != c


def test_truth_is_read_from_whatever_it_comes_in(tmp_path: Path) -> None:
    mesh = ball(subdivisions=3)
    normals = mesh.normals.astype(np.float64)
    (tmp_path / "gt").mkdir()
    write_mesh(tmp_path / "gt" / "mesh.ply", mesh)
    np.savez(tmp_path / "gt" / "points.npz", points=mesh.vertices.astype(np.float32), normals=normals.astype(np.float16))
    (tmp_path / "gt" / "region.json").write_text('{"min": [-2, -2, -2], "max": [2, 2, 2]}')
    for folder in (tmp_path, tmp_path / "gt"):
        truth = read_truth(folder)
        assert truth.mesh is not None and truth.points is not None and truth.region is not None
    mesh_only, points_only = read_truth(tmp_path / "gt" / "mesh.ply"), read_truth(tmp_path / "gt" / "points.npz")
    assert mesh_only.points is None and points_only.mesh is None
    np.testing.assert_allclose(points_only.normals, normals, atol=1e-3)
    cloud = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n1 2 3\n"
    (tmp_path / "cloud.ply").write_text(cloud)
    np.testing.assert_array_equal(read_truth(tmp_path / "cloud.ply").points, [[0, 0, 0], [1, 2, 3]])
    for wrong in (tmp_path / "none.ply", tmp_path.parent):
        with pytest.raises(SceneError, match="no ground truth"):
            read_truth(wrong)
    np.savez(tmp_path / "wrong.npz", vertices=np.zeros(3))
    with pytest.raises(SceneError, match="vertices"):
        read_truth(tmp_path / "wrong.npz")
    for name, kind in (("text.npz", SceneError), ("text.txt", MeshError), ("text.ply", MeshError)):
        (tmp_path / name).write_text("not a surface")
        with pytest.raises(kind, match=rf"{name}.*(can be read|not readable|are read from)"):
            read_truth(tmp_path / name)


def test_the_bust_scores_as_its_publishers_score_it(shared_data: Path) -> None:
    """A displaced bust with a hidden copy inside, against what the data's own scorer says of it (embree visibility, exact triangles)."""
    from fastsurf.formats import load

    folder = shared_data / "nefertiti"
    bust = read_mesh(folder / "gt" / "mesh.ply")
    size = np.linalg.norm(np.ptp(bust.vertices, axis=0))
    moved = bust.vertices + bust.normals * (0.003 * size * np.sin(36 * bust.vertices / size).sum(1, keepdims=True))
    middle = bust.vertices.mean(0)
    mesh = joined(replace(bust, vertices=moved), replace(bust, vertices=middle + 0.6 * (bust.vertices - middle)))
    views = [view for view in load(folder).views if view.split == "train"]
    score = score_mesh(mesh, read_truth(folder), views)
    assert score["chamfer_pct"] == pytest.approx(0.4117, rel=0.02)
    assert score["f_score"] == pytest.approx(0.9638, abs=0.005)
    assert score["f_score_05"] == pytest.approx(0.7739, abs=0.01)
    assert score["normal_error_deg"] == pytest.approx(9.19, abs=0.4)
