"""DTU's protocol on surfaces whose distance is known, from files laid out as DTU's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fastsurf.dtu import DENSITY, Observation, dense_points, read_observation, scan_number, score_dtu, thin
from fastsurf.errors import MeshError, SceneError
from fastsurf.mesh import Mesh


def square(edge: float, height: float, at: tuple[float, float] = (0, 0), cells: int = 1) -> Mesh:
    """Horizontal, in 2 cells^2 triangles, its lower corner at `at`."""
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, edge, cells + 1), np.linspace(0, edge, cells + 1)))
    i = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    faces = np.concatenate([np.stack([i, i + 1, i + cells + 2], 1), np.stack([i, i + cells + 2, i + cells + 1], 1)]).astype(np.int32)
    vertices = np.stack([x + at[0], y + at[1], np.full(len(x), height)], 1)
    return Mesh(vertices, faces, np.tile(np.float32([0, 0, 1]), (len(x), 1)))


def joined(a: Mesh, b: Mesh) -> Mesh:
    faces = np.concatenate([a.faces, b.faces + np.int32(len(a.vertices))])
    return Mesh(np.concatenate([a.vertices, b.vertices]), faces, np.concatenate([a.normals, b.normals]))


def scanned(height: float = 10.0) -> np.ndarray:
    """Points of a square of 20 mm, 0.1 mm apart."""
    x, y = (a.ravel() for a in np.meshgrid(np.arange(0, 20.01, 0.1), np.arange(0, 20.01, 0.1)))
    return np.stack([x, y, np.full(len(x), height)], 1)


@pytest.fixture
def observed() -> Observation:
    """A square of 20 mm at a height of 10 mm, the table at 0; seen in cells of 2 mm from -2 to 24 mm."""
    mask = np.ones((14, 14, 14), bool)
    low = np.full(3, -2.0)
    return Observation(scanned(), mask, low, low + 26, 2.0, np.array([0.0, 0, 1, 0]))


def test_a_parallel_square_is_as_far_as_it_is(observed: Observation) -> None:
    for cells in (1, 150):
        scores = score_dtu(square(20, 10.5, cells=cells), observed)
        assert scores == pytest.approx({"accuracy": 0.5, "completeness": 0.5, "overall": 0.5}, abs=0.02)
    exact = score_dtu(square(20, 10), observed)
    assert exact["accuracy"] < 0.06 and exact["completeness"] < DENSITY  # the spacing of the scan, and of the thinned samples


def test_half_of_the_square_misses_only_the_other_half(observed: Observation) -> None:
    half = square(20, 10)
    half = replace(half, vertices=half.vertices * (0.5, 1, 1))
    scores = score_dtu(half, observed)
    assert scores["accuracy"] < 0.06
    assert scores["completeness"] == pytest.approx(2.5, abs=0.1)  # half the points, 5 mm away on average


def test_what_was_not_observed_does_not_count_as_wrong(observed: Observation) -> None:
    good = square(20, 10.5)
    beside = square(10, 12, at=(10, 30))  # outside of the mask, within the box round it
    assert score_dtu(joined(good, beside), observed)["accuracy"] == pytest.approx(0.5, abs=0.02)
    hidden = observed.mask.copy()
    hidden[:, :, 8:] = False  # cells above 13 mm
    above = square(20, 19)
    assert score_dtu(joined(good, above), observed)["accuracy"] > 3
    assert score_dtu(joined(good, above), replace(observed, mask=hidden))["accuracy"] == pytest.approx(0.5, abs=0.02)


def test_completeness_may_use_what_lies_outside_of_the_mask(observed: Observation) -> None:
    hidden = observed.mask.copy()
    hidden[:, 6:] = False  # y beyond 9 mm
    assert score_dtu(square(20, 10.5), replace(observed, mask=hidden))["completeness"] == pytest.approx(0.5, abs=0.02)


def test_beyond_the_cut_off_nothing_counts(observed: Observation) -> None:
    far = replace(observed, points=np.concatenate([observed.points, scanned(40)]))
    assert score_dtu(square(20, 10.5), far)["completeness"] == pytest.approx(0.5, abs=0.02)
    near = replace(observed, points=np.concatenate([observed.points, scanned(28)]))
    assert score_dtu(square(20, 10.5), near)["completeness"] == pytest.approx((0.5 + 17.5) / 2, abs=0.1)


def test_the_table_need_not_be_found(observed: Observation) -> None:
    table = replace(observed, points=np.concatenate([observed.points, scanned(-1)]))
    assert score_dtu(square(20, 10.5), table)["completeness"] == pytest.approx(0.5, abs=0.02)


def test_a_mesh_in_another_frame_is_an_error(observed: Observation) -> None:
    with pytest.raises(MeshError, match="own frame"):
        score_dtu(square(20, 1000), observed)


def test_thinned_points_are_apart_and_cover_the_rest() -> None:
    from scipy.spatial import cKDTree

    points = np.random.default_rng(0).random((4000, 3))
    kept = thin(points, 0.1, np.random.default_rng(1))
    assert cKDTree(kept).query(kept, k=2)[0][:, 1].min() > 0.1
    assert cKDTree(kept).query(points)[0].max() <= 0.1
    in_order: list[np.ndarray] = []
    for p in np.random.default_rng(1).permutation(points)[:1500]:  # one by one, as it is defined
        if not in_order or np.linalg.norm(np.array(in_order) - p, axis=1).min() > 0.1:
            in_order.append(p)
    early = thin(points, 0.1, np.random.default_rng(1))
    assert {tuple(p) for p in in_order} <= {tuple(p) for p in early}


def test_large_triangles_are_filled() -> None:
    from scipy.spatial import cKDTree

    points = dense_points(square(5, 0), 0.2)
    assert len(np.unique(points.round(9), axis=0)) >= (5 / 0.2) ** 2
    where = np.random.default_rng(0).random((2000, 3)) * (5, 5, 0)
    assert cKDTree(points).query(where)[0].max() < 0.2
    assert len(dense_points(square(5, 0, cells=50), 0.2)) == 51**2


def test_files_are_read_as_dtu_lays_them_out(tmp_path: Path, observed: Observation) -> None:
    (tmp_path / "ObsMask").mkdir()
    (tmp_path / "Points" / "stl").mkdir(parents=True)
    box = np.stack([observed.low, observed.high])
    savemat(tmp_path / "ObsMask" / "ObsMask65_10.mat", {"ObsMask": observed.mask.astype(np.uint8), "BB": box, "Res": [[observed.cell]]})
    with pytest.raises(SceneError, match=r"Plane65\.mat is missing"):
        read_observation(tmp_path, 65)
    savemat(tmp_path / "ObsMask" / "Plane65.mat", {"P": observed.plane[:, None]})
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat ascii 1.0\nelement vertex {len(observed.points)}\n{properties}end_header\n"
    lines = "\n".join(" ".join(f"{v:g}" for v in p) for p in observed.points)
    (tmp_path / "Points" / "stl" / "stl065_total.ply").write_text(head + lines + "\n")
    read = read_observation(tmp_path, scan_number(Path("data/dtu_scan65")))
    assert score_dtu(square(20, 10.5), read) == pytest.approx(score_dtu(square(20, 10.5), observed), abs=1e-3)
    (tmp_path / "ObsMask" / "Plane65.mat").write_text("no")
    with pytest.raises(SceneError, match=r"Plane65\.mat: not a MATLAB file"):
        read_observation(tmp_path, 65)
    savemat(tmp_path / "ObsMask" / "Plane65.mat", {"Q": observed.plane})
    with pytest.raises(SceneError, match="P is missing"):
        read_observation(tmp_path, 65)
    with pytest.raises(SceneError, match="skull names no DTU scan"):
        scan_number(Path("data/skull"))
