"""Facts about solids: what is told of them is true, and what is mended is one."""

import numpy as np
import pytest
import torch
import trimesh
from test_mesh import near, sphere, torus

from fastsurf.errors import MeshError
from fastsurf.mesh import extract
from fastsurf.solidity import close, crossings, inspect, make_solid, part, simplify


def box(at=(0.0, 0.0, 0.0)):
    found = trimesh.creation.box((1, 1, 1))
    found.apply_translation(at)
    return found


def joined(*parts):
    """Their vertices welded."""
    mesh = trimesh.util.concatenate(list(parts))
    mesh.merge_vertices()
    return np.array(mesh.vertices), np.array(mesh.faces, np.int32)


def ring(thickness):
    def level(x):
        return thickness - torch.stack([x[:, :2].norm(dim=1) - 0.7, x[:, 2]], 1).norm(dim=1)

    return extract(level, near(level), 200, closed=True)


def test_a_torus_has_a_handle_and_its_volume():
    report = inspect(*extract(torus, near(torus), 100, closed=True))
    assert report.watertight and (report.components, report.genus, report.euler) == (1, 1, 0)
    assert report.volume == pytest.approx(2 * np.pi**2 * 0.6 * 0.18**2, rel=0.01)
    assert report.area == pytest.approx(4 * np.pi**2 * 0.6 * 0.18, rel=0.01)
    assert report.line().startswith("watertight, genus 1, 1 component, area") and set(report.tree()) >= {"volume", "boundary_edges"}


def test_an_open_mesh_says_how_open():
    report = inspect(*(lambda v, f: (v, f[1:]))(*joined(box())))
    assert not report.watertight and report.boundary_edges == 3 and report.volume is None and report.genus is None
    assert report.line().startswith("open: 3 boundary edges, 1 component")


@pytest.mark.parametrize("shift, edges, vertices", [((1, 1, 0), 1, 2), ((1, 1, 1), 0, 1)])
def test_solids_that_touch_are_parted(shift, edges, vertices):
    """Along an edge or in a corner: two boxes come out, whole and of their volume, also for a program that welds equal places."""
    before = joined(box(), box(shift))
    report = inspect(*before)
    assert (report.nonmanifold_edges, report.nonmanifold_vertices) == (edges, vertices)
    after = part(*before)
    report = inspect(*after)
    assert report.watertight and report.components == 2 and not report.nonmanifold_vertices
    assert report.volume == pytest.approx(2, rel=2e-3)
    assert len(np.unique(after[0].astype(np.float32), axis=0)) == len(after[0])


def voxels(solid):
    """The surface of cubes, (x, y, z) bool."""
    faces, padded = [], np.pad(solid, 1)
    for at in np.argwhere(padded):
        cube = box(at)
        out = [not padded[tuple(at + np.rint(normal).astype(int))] for normal in cube.face_normals]
        faces.append(trimesh.Trimesh(cube.vertices, cube.faces[out], process=False))
    return joined(*faces)


def test_two_edges_with_the_same_ends_become_two():
    """Cubes that touch along an edge between two slabs: the surface is one fan round either end, so the edge itself is split."""
    solid = np.ones((2, 2, 3), bool)
    solid[[0, 1], [0, 1], 1] = False
    before = voxels(solid)
    assert inspect(*before).nonmanifold_edges == 1
    after = part(*before)
    report = inspect(*after)
    assert report.watertight and not report.nonmanifold_vertices and (report.components, report.genus) == (1, 1)
    assert len(after[1]) == len(before[1]) + 4 and report.volume == pytest.approx(10, rel=1e-2)


def test_holes_are_closed_and_the_outcome_is_accepted():
    pytest.importorskip("manifold3d")
    vertices, faces = extract(sphere(0.6), near(sphere(0.6)), 32, closed=True)
    torn = faces[vertices[faces].mean(1)[:, 2] < 0.5]
    assert inspect(vertices, torn).boundary_edges > 10
    solid = make_solid(vertices, torn)
    assert inspect(*solid).watertight
    assert inspect(*solid).volume == pytest.approx(4 / 3 * np.pi * 0.6**3 - np.pi * 0.1**2 * (0.6 - 0.1 / 3), rel=0.02)
    assert close(vertices, faces)[1] is faces


def test_what_is_inside_out_is_no_solid():
    pytest.importorskip("manifold3d")
    vertices, faces = joined(box())
    with pytest.raises(MeshError, match=r"no solid can be made.*volume -1"):
        make_solid(vertices, faces[:, ::-1].copy())


@pytest.mark.parametrize("most", [3000, 600, 200])
@pytest.mark.parametrize("thickness", [0.02, 0.1])
def test_simplifying_keeps_a_thin_ring_whole_and_closed(most, thickness):
    vertices, faces = ring(thickness)
    fewer = simplify(vertices, faces, most)
    report = inspect(*fewer)
    assert len(fewer[1]) <= 1.25 * most and report.watertight and not report.nonmanifold_vertices
    assert (report.components, report.genus) == (1, 1)
    angle = np.sort(np.arctan2(*fewer[0][:, :2].T))
    assert np.diff(angle).max() < 0.8 and report.volume > 0.5 * inspect(vertices, faces).volume


def test_faces_that_pass_through_each_other_are_counted():
    apart = trimesh.util.concatenate([box(), box((3, 0, 0))])
    through = trimesh.util.concatenate([box(), box((0.5, 0.4, 0.3))])
    assert crossings(np.array(apart.vertices), np.array(apart.faces, np.int32)) == 0
    assert crossings(np.array(through.vertices), np.array(through.faces, np.int32)) >= 6
    assert crossings(*extract(torus, near(torus), 64, closed=True)) == 0
