"""Facts about extraction on analytic solids: closed, outward, of the right volume, no matter how blocks and grid cut them."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsurf.errors import BackendError, MeshError
from fastsurf.extraction import has_native
from fastsurf.mesh import clean, components, extract, is_watertight, signed_volumes
from fastsurf.solidity import simplify

Level = Callable[[Tensor], Tensor]
WAYS = ["native", "slabs"]
everything_twice = pytest.mark.parametrize("way", WAYS, indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Meshing with the native library and, where there is none, slab by slab."""
    if request.param == "native":
        assert has_native(), "build the native library"
    monkeypatch.setattr("fastsurf.mesh.has_native", lambda: request.param == "native")
    return str(request.param)


def sphere(radius: float, center: tuple[float, float, float] = (0, 0, 0)) -> Level:
    return lambda x: radius - (x - torch.tensor(center)).norm(dim=1)


def torus(x: Tensor) -> Tensor:
    return 0.18 - torch.stack([x[:, :2].norm(dim=1) - 0.6, x[:, 2]], 1).norm(dim=1)


def near(level: Level, g: int = 32) -> Tensor:
    """Cells that hold solid or surface: their middle is inside, or closer than a cell."""
    axis = (torch.arange(g) + 0.5) * (2 / g) - 1
    middle = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return level(middle.reshape(-1, 3)).reshape(g, g, g) > -2 / g


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    return float(signed_volumes(vertices, faces).sum())


def euler(vertices: np.ndarray, faces: np.ndarray) -> int:
    return len(vertices) - 3 * len(faces) // 2 + len(faces)


@pytest.mark.parametrize("resolution", [31, 32, 33, 64, 100])
@everything_twice
def test_sphere_is_closed_outward_and_has_its_radius(way: str, resolution: int) -> None:
    level = sphere(0.7, (0.05, -0.02, 0.11))
    vertices, faces = extract(level, near(level), resolution, closed=True)
    assert vertices.dtype == np.float64 and faces.dtype == np.int32
    assert is_watertight(faces) and euler(vertices, faces) == 2
    h = 2 / resolution
    assert np.abs(level(torch.from_numpy(vertices).float()).numpy()).max() < 0.25 * h * h / 0.7 + 2e-3 * h
    assert volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=2 * h * h)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * (corners.mean(1) - (0.05, -0.02, 0.11))).sum(1) > 0).all()


@everything_twice
def test_torus_has_its_volume_and_one_hole(way: str) -> None:
    vertices, faces = extract(torus, near(torus), 96, closed=True)
    assert is_watertight(faces) and euler(vertices, faces) == 0
    assert volume(vertices, faces) == pytest.approx(2 * np.pi**2 * 0.6 * 0.18**2, rel=0.01)


@everything_twice
def test_two_spheres_over_block_borders_stay_two(way: str) -> None:
    def level(x: Tensor) -> Tensor:
        return torch.maximum(sphere(0.25, (-0.5, 0, 0))(x), sphere(0.25, (0.02, 0.0, 0.0))(x))

    vertices, faces = extract(level, near(level), 128, closed=True)  # lattice planes 32, 64, 96 are block borders: x = -0.5, 0, 0.5
    assert is_watertight(faces)
    assert components(vertices, faces).max() == 1
    assert volume(vertices, faces) == pytest.approx(2 * 4 / 3 * np.pi * 0.25**3, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
@everything_twice
def test_noise_is_closed_however_ambiguous_its_cells(way: str, seed: int) -> None:
    """Random signs hit every case of marching cubes; zeros hit vertices that fall on lattice points."""
    noise = torch.randint(-1, 2, (40, 40, 40), generator=torch.Generator().manual_seed(seed)).float()

    def level(x: Tensor) -> Tensor:
        i = ((x + 1) / 2 * 39).round().long()
        return noise[i[:, 0], i[:, 1], i[:, 2]]

    vertices, faces = extract(level, torch.ones(4, 4, 4, dtype=torch.bool), 39, closed=True)
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, 1).ravel().astype(np.int64)
    n = len(vertices)
    np.testing.assert_array_equal(np.sort(start * n + end), np.sort(end * n + start))  # as many faces left as right of every edge: no holes
    assert (faces[:, 0] != faces[:, 1]).all() and (faces[:, 1] != faces[:, 2]).all() and (faces[:, 2] != faces[:, 0]).all()


@everything_twice
def test_plane_cut_by_the_box_is_capped_or_left_open(way: str) -> None:
    def level(x: Tensor) -> Tensor:
        return -x @ torch.tensor([0.2, 0.1, 1.0])  # solid below a tilted plane through the middle

    everywhere = torch.ones(8, 8, 8, dtype=torch.bool)
    vertices, faces = extract(level, everywhere, 50, closed=True)
    assert is_watertight(faces) and euler(vertices, faces) == 2
    assert np.abs(vertices).max() == 1  # the cap lies on the box itself
    assert volume(vertices, faces) == pytest.approx(4, rel=0.03)

    vertices, faces = extract(level, everywhere, 50, closed=False)
    assert not is_watertight(faces)
    np.testing.assert_allclose(vertices @ [0.2, 0.1, 1.0], 0, atol=1.1e-3 * 2 / 50)  # the plane alone
    assert np.ptp(vertices[:, 0]) == 2 and np.ptp(vertices[:, 1]) == 2


@everything_twice
def test_places_do_not_depend_on_the_field_scale(way: str) -> None:
    level = sphere(0.6)
    a = extract(level, near(level), 48, closed=True)
    b = extract(lambda x: 200 * level(x), near(level), 48, closed=True)
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    np.testing.assert_array_equal(a[1], b[1])


@everything_twice
def test_only_the_neighbourhood_of_occupied_cells_is_evaluated(way: str) -> None:
    level, cells, seen, progress = sphere(0.3), near(sphere(0.3)), [], []

    def watched(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        seen.append(x)
        return level(x)

    extract(watched, cells, 128, closed=True, on_progress=progress.append)
    points = torch.cat(seen)
    assert len(points) < 0.1 * 129**3
    assert len(seen) <= 6  # the coarse lattice, and one batch a slab or a look at this size
    assert points.norm(dim=1).max() < 0.3 + 4 * np.sqrt(3) * 2 / 32
    assert progress == sorted(progress) and progress[-1] == 1


def plate(x: Tensor) -> Tensor:
    """Thinner than two lattice steps, tilted, with a round hole."""
    height = x @ torch.nn.functional.normalize(torch.tensor([0.3, -0.2, 1.0]), dim=0)
    return torch.minimum(0.012 - height.abs(), x[:, :2].norm(dim=1) - 0.3)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("level", [sphere(0.5, (0.03, -0.4, 0.2)), torus, plate, lambda x: 0.1 + torus(x) * (1 + 5 * x[:, 0].abs())])
@everything_twice
def test_the_coarse_look_loses_nothing(way: str, level: Level, closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh is that of evaluating every point, to the bit: where all is occupied, and where occupied cells cut the solid."""
    seen = []

    def watched(x: Tensor) -> Tensor:
        seen.append(len(x))
        return level(x)

    half = near(level)
    half[:20, :, 9:] = False
    for cells in (torch.ones(4, 4, 4, dtype=torch.bool), half):
        seen.clear()
        found, some = extract(watched, cells, 130, closed), sum(seen)
        with monkeypatch.context() as patched:
            for module in ("extraction", "slabs"):
                patched.setattr(f"fastsurf.{module}.MARGIN", 1e9)
            seen.clear()
            wanted = extract(watched, cells, 130, closed)
        for a, b in zip(canonical(*found), canonical(*wanted), strict=True):
            np.testing.assert_array_equal(a, b)
        assert some < (0.5 if cells.all() else 1.001) * sum(seen)


def canonical(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same mesh with its vertices and faces in an order that does not depend on how it was made."""
    order = np.lexsort(vertices.T)
    faces = np.argsort(order)[faces]
    first = faces.argmin(1)[:, None]
    faces = np.take_along_axis(faces, (first + np.arange(3)) % 3, 1)
    return vertices[order], faces[np.lexsort(faces.T)]


def bumpy(seed: int, n: int = 24) -> Level:
    """A ball in noise that is linear between random values: many small pieces, cavities and handles."""
    noise = torch.randn(1, 1, n, n, n, generator=torch.Generator().manual_seed(seed))

    def level(x: Tensor) -> Tensor:
        grid = x.flip(1)[None, :, None, None]
        return 0.5 - x.norm(dim=1) + 0.2 * torch.nn.functional.grid_sample(noise, grid, align_corners=True).flatten()

    return level


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("resolution", [9, 50, 131])
def test_the_native_mesh_is_that_of_pymcubes_on_every_point(resolution: int, closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same vertices to the bit, as many faces, the same pieces and volume; and unlike PyMCubes', no edge has more than two faces."""
    level, cells = bumpy(resolution), torch.ones(6, 6, 6, dtype=torch.bool)
    cells[4:, :, 5] = False
    for module in ("extraction", "slabs"):
        monkeypatch.setattr(f"fastsurf.{module}.MARGIN", 1e9)
    vertices, faces = extract(level, cells, resolution, closed)
    monkeypatch.setattr("fastsurf.mesh.has_native", lambda: False)
    wanted_vertices, wanted_faces = extract(level, cells, resolution, closed)
    np.testing.assert_array_equal(vertices[np.lexsort(vertices.T)], wanted_vertices[np.lexsort(wanted_vertices.T)])
    assert len(faces) == len(wanted_faces) and euler(vertices, faces) == euler(wanted_vertices, wanted_faces)
    assert components(vertices, faces).max() == components(wanted_vertices, wanted_faces).max()
    assert volume(vertices, faces) == pytest.approx(volume(wanted_vertices, wanted_faces), rel=0.05)  # diagonals differ
    if closed:
        assert is_watertight(faces)


def test_a_piece_is_followed_from_where_it_is_seen() -> None:
    """A wire much thinner than a coarse cell, but for a bead: the bead is seen, and the wire comes with it, whole and closed."""
    wire = lambda x: 0.012 - x[:, :2].norm(dim=1)  # noqa: E731
    level = lambda x: torch.maximum(torch.minimum(wire(x), 0.9 - x[:, 2].abs()), sphere(0.2)(x)).clamp(min=-0.02)  # noqa: E731
    vertices, faces = extract(level, torch.ones(4, 4, 4, dtype=torch.bool), 257, closed=True)
    assert is_watertight(faces) and euler(vertices, faces) == 2
    assert vertices[:, 2].max() > 0.89 and vertices[:, 2].min() < -0.89


def test_threads_change_nothing() -> None:
    level = bumpy(3)
    one, three = (extract(level, near(level), 70, closed=True, threads=threads) for threads in (1, 3))
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))


@everything_twice
def test_solid_outside_occupied_cells_counts_as_empty(way: str) -> None:
    def level(x: Tensor) -> Tensor:
        return torch.maximum(sphere(0.2, (-0.5, 0, 0))(x), sphere(0.2, (0.5, 0, 0))(x))

    cells = near(level)
    cells[16:] = False
    vertices, faces = extract(level, cells, 64, closed=True)
    assert is_watertight(faces) and vertices[:, 0].max() < 0


@everything_twice
def test_a_tiny_solid_at_high_resolution_needs_little_memory(way: str) -> None:
    level = sphere(0.05, (0.4, 0.4, -0.3))
    cells = near(level, 96)
    tracemalloc.start()
    vertices, faces = extract(level, cells, 512, closed=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6
    assert volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.05**3, rel=0.02)


@everything_twice
def test_every_reason_for_no_surface_is_told(way: str) -> None:
    everywhere = torch.ones(4, 4, 4, dtype=torch.bool)
    with pytest.raises(MeshError, match="nothing is occupied"):
        extract(sphere(0.5), ~everywhere, 16, closed=True)
    with pytest.raises(MeshError, match="negative"):
        extract(sphere(-0.1), everywhere, 16, closed=True)
    for closed in (True, False):
        with pytest.raises(MeshError, match="positive"):
            extract(sphere(9.0), everywhere, 16, closed=closed)
    with pytest.raises(MeshError, match="higher resolution"):  # inside at a corner of the box alone, which is cut off
        extract(sphere(0.05, (1, 1, 1)), everywhere, 16, closed=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@everything_twice
def test_a_field_that_is_not_finite_is_the_backends_fault(way: str, bad: float) -> None:
    with pytest.raises(BackendError, match="not finite"):
        extract(lambda x: torch.where(x[:, 0] > 0.5, bad, 0.3 - x.norm(dim=1)), torch.ones(4, 4, 4, dtype=torch.bool), 32, closed=True)


def shell_with_floaters(x: Tensor) -> Tensor:
    """A ball with a cavity in which a pearl floats, and two crumbs outside."""
    hollow = torch.minimum(sphere(0.6)(x), -sphere(0.35)(x))
    pieces = [hollow, sphere(0.15)(x), sphere(0.05, (0.8, 0.8, 0.8))(x), sphere(0.12, (-0.75, -0.75, 0))(x)]
    return torch.stack(pieces).amax(0)


@pytest.mark.parametrize(
    "min_component, fill, radii",
    [
        (0.0, False, (0.6, -0.35, 0.15, 0.05, 0.12)),
        (0.0, True, (0.6, 0.05, 0.12)),
        (0.01, True, (0.6, 0.12)),  # 0.05^2 is less than a hundredth of 0.6^2
        (0.05, True, (0.6,)),
    ],
)
def test_cleaning_drops_crumbs_and_fills_cavities(min_component: float, fill: bool, radii: tuple[float, ...]) -> None:
    vertices, faces = clean(*extract(shell_with_floaters, torch.ones(8, 8, 8, dtype=torch.bool), 80, closed=True), min_component, fill)
    label = components(vertices, faces)
    volumes = np.bincount(label, signed_volumes(vertices, faces))
    np.testing.assert_allclose(np.sort(volumes), np.sort([4 / 3 * np.pi * r**3 for r in radii]), rtol=0.2)
    assert is_watertight(faces)
    assert len(np.unique(faces)) == len(vertices)


@pytest.mark.parametrize("min_component, pieces", [(0.01, 2), (0.05, 2), (0.15, 1)])
def test_a_rod_that_broke_off_stays_and_crumbs_go(min_component: float, pieces: int) -> None:
    """A ball of 0.3, a rod of 0.015 x 0.3 beside it (2.6 % of its area, half its length) and a crumb of 0.012."""
    def level(x: Tensor) -> Tensor:
        beside = (x - torch.tensor([0.6, 0.0, 0.0])).abs()
        rod = torch.minimum(0.015 - beside[:, :2].norm(dim=1), 0.15 - beside[:, 2])
        return torch.stack([sphere(0.3)(x), rod, sphere(0.012, (-0.7, 0, 0))(x)]).amax(0)

    vertices, faces = extract(level, torch.ones(8, 8, 8, dtype=torch.bool), 200, closed=True)
    assert components(vertices, faces).max() == 2
    assert len(np.unique(components(*clean(vertices, faces, min_component, True, spare_long=True)))) == pieces
    assert len(np.unique(components(*clean(vertices, faces, min_component, True)))) == (2 if min_component < 0.02 else 1)


def test_a_bowl_open_at_the_box_is_no_cavity() -> None:
    """What is left open has no inside: never dropped, whichever way its signed volume falls."""
    vertices, faces = extract(lambda x: -sphere(0.8, (0, 0, 1))(x), torch.ones(8, 8, 8, dtype=torch.bool), 40, closed=False)
    kept, _ = clean(vertices, faces, 0.01, fill_cavities=True)
    assert len(kept) == len(vertices)


def test_a_hollow_without_anything_round_it_stays() -> None:
    """A room whose walls end at the box, which is left open."""
    found = extract(lambda x: -sphere(0.6)(x), torch.ones(8, 8, 8, dtype=torch.bool), 40, closed=False)
    vertices, faces = clean(*found, 0.01, fill_cavities=True)
    assert len(vertices) == len(found[0]) and signed_volumes(vertices, faces).sum() < 0


def test_simplifying_keeps_the_shape_closed() -> None:
    level = sphere(0.7)
    vertices, faces = extract(level, near(level), 64, closed=True)
    fewer_vertices, fewer = simplify(vertices, faces, 2000)
    assert 1000 < len(fewer) <= 2000 and is_watertight(fewer)
    assert np.abs(np.linalg.norm(fewer_vertices, axis=1) - 0.7).max() < 0.01
    assert volume(fewer_vertices, fewer) == pytest.approx(volume(vertices, faces), rel=0.01)
    assert simplify(vertices, faces, len(faces))[1] is faces
