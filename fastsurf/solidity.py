"""Whether a mesh bounds a solid: what is told of every mesh, and how one with fewer faces, or a torn or pinched one, becomes sound.

Half-edge h = 3 f + k runs along face f from its corner k to the next one; its mate runs the other way along the face beyond. A fan is
the corners at one vertex that mates connect: a manifold vertex has one. V, E and F count the vertices, edges and faces in use.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MeshError
from .mesh import Bools, Faces, Floats, Ints, compact, components, face_areas, signed_volumes
from .output import LEAST_FACES

SHIFT = 1e-3  # of the way to their neighbours' middle: where the copies of a pinched vertex go, so that no program joins them again
HASTE = (7, 5)  # of collapses: with 5, rings of 200 faces stayed whole that 7 pinched; with less, too many faces are left
_NEAR = 1 << 22  # pairs of faces looked at together


@dataclass(frozen=True)
class Report:
    """What a mesh is, in the units it is given in."""

    vertices: int
    faces: int
    components: int
    watertight: bool  # every edge has one face on either side, facing alike
    boundary_edges: int  # with one face
    nonmanifold_edges: int  # with more than two, or two that face opposite ways
    nonmanifold_vertices: int  # where sheets touch in a point or along an edge
    euler: int  # V - E + F
    genus: int | None  # handles of all components together; None where there is a boundary or something is not manifold
    volume: float | None  # enclosed; None where there is a boundary
    area: float

    def line(self) -> str:
        """In a few words, ASCII only."""
        parts = f"{self.components} component{'s' if self.components > 1 else ''}, area {self.area:.4g}"
        if self.watertight:
            pinched = f", {self.nonmanifold_vertices:,} pinched vertices" if self.nonmanifold_vertices else f", genus {self.genus}"
            return f"watertight{pinched}, {parts}, volume {self.volume:.4g}"
        faults = [(self.boundary_edges, "boundary edges"), (self.nonmanifold_edges, "edges not manifold")]
        return f"open: {', '.join(f'{n:,} {what}' for n, what in faults if n)}, {parts}"

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def inspect(vertices: Floats, faces: Faces) -> Report:
    """Look at a mesh, (v, 3) and (f, 3); vertices that no face uses don't count."""
    vertices, faces = compact(vertices, faces)
    uses, net = _edge_uses(faces)
    mates = _mates(vertices, faces)
    fans = _fans(faces, mates)
    many = np.bincount(faces.reshape(-1)[np.unique(fans, return_index=True)[1]], minlength=len(vertices)) > 1
    n_components = int(components(vertices, faces).max(initial=-1)) + 1
    boundary, odd = int((uses == 1).sum()), int(((uses > 2) | ((uses == 2) & (net != 0))).sum())
    euler = len(vertices) - len(uses) + len(faces)
    closed = not boundary and not odd and len(faces) > 0
    return Report(
        len(vertices), len(faces), n_components, closed, boundary, odd, int(many.sum()), euler,
        genus=(2 * n_components - euler) // 2 if closed and not many.any() else None,
        volume=float(signed_volumes(vertices, faces).sum()) if closed else None,
        area=float(face_areas(vertices, faces).sum()),
    )  # fmt: skip


def simplify(vertices: Floats, faces: Faces, most: int) -> tuple[Floats, Faces]:
    """At most about `most` faces, by quadric edge collapse (Garland and Heckbert 1997); the mesh itself if it has no more.

    A closed mesh stays closed: where collapses made sheets touch, fewer of them are made in one go, and what still touches is parted.
    """
    if len(faces) <= most:
        return vertices, faces
    import fast_simplification

    for haste in HASTE:
        # single precision inside: safe in scene units
        points, triangles = fast_simplification.simplify(vertices.astype(np.float32), faces, target_count=most, agg=haste)
        found = compact(points.astype(np.float64), triangles.astype(np.int32))
        parted = part(*found)
        if len(parted[0]) == len(found[0]):
            break
    return parted


def part(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """Sheets that touch in vertices or along edges parted there: every vertex has one fan, and two vertices one edge.

    Of a closed surface that touches itself this makes a closed manifold. What is left with fewer faces than a solid has is dropped.
    """
    folded = (faces == np.roll(faces, 1, 1)).any(1)
    faces = faces[~folded]
    fans = _fans(faces, _mates(vertices, faces))
    first = np.unique(fans, return_index=True)[1]
    owner = faces.reshape(-1)[first]  # (n_fans,) the vertex of each fan
    order = np.argsort(owner, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    parted = rank[fans].reshape(-1, 3).astype(np.int32)
    owner = owner[order]
    places = vertices[owner]
    copies = np.bincount(owner, minlength=len(vertices))[owner] > 1
    if copies.any():
        ring, count = np.zeros((len(places), 3)), np.zeros(len(places))
        for k in range(3):
            own, others = parted[:, k], places[parted[:, (k + 1) % 3]] + places[parted[:, (k + 2) % 3]]
            touched = copies[own]
            np.add.at(ring, own[touched], others[touched])
            np.add.at(count, own[touched], 2)
        places[copies] += SHIFT * (ring[copies] / count[copies, None] - places[copies])
    label = components(places, parted)
    whole = np.bincount(label) >= LEAST_FACES
    return _single_edges(*compact(places, parted[whole[label]]))


def _single_edges(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """Where two edges of one surface have the same ends (a handle that shrank to a line), each gets a vertex in its middle."""
    while True:
        uses, _ = _edge_uses(faces)
        if not (uses > 2).any():
            return vertices, faces
        mates = _mates(vertices, faces)
        start, end = faces.reshape(-1).astype(np.int64), np.roll(faces, -1, 1).reshape(-1).astype(np.int64)
        pairs = np.flatnonzero((mates >= 0) & (start < end))
        _, of, count = np.unique(start[pairs] * len(vertices) + end[pairs], return_inverse=True, return_counts=True)
        split = pairs[count[of] > 1]
        touched: set[int] = set()
        points, more, kept = [vertices], [], np.ones(len(faces), bool)
        n = len(vertices)
        for h in split.tolist():
            m = int(mates[h])
            if touched & {h // 3, m // 3}:
                continue
            touched |= {h // 3, m // 3}
            a, b, c, d = (int(faces[k // 3, (k + step) % 3]) for k, step in ((h, 0), (h, 1), (h, 2), (m, 2)))
            middle = 0.5 * (vertices[a] + vertices[b])
            points.append((middle + SHIFT * (0.5 * (vertices[c] + vertices[d]) - middle))[None])
            more += [(a, n, c), (n, b, c), (b, n, d), (n, a, d)]
            kept[[h // 3, m // 3]] = False
            n += 1
        if not more:
            return vertices, faces
        vertices, faces = np.concatenate(points), np.concatenate([faces[kept], np.array(more, np.int32)])


def close(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """Holes of a parted mesh filled, each with a fan round its middle."""
    mates = _mates(vertices, faces)
    ends = np.flatnonzero(mates < 0)
    if not len(ends):
        return vertices, faces
    start, end = faces.reshape(-1)[ends], np.roll(faces, -1, 1).reshape(-1)[ends]
    onwards = dict(zip(start.tolist(), end.tolist(), strict=True))
    points, caps = [vertices], [faces]
    n = len(vertices)
    while onwards:
        first, at = onwards.popitem()
        loop = [first]
        while at != first and at in onwards:
            loop.append(at)
            at = onwards.pop(at)
        ring = np.array(loop)
        points.append(vertices[ring].mean(0, keepdims=True))
        caps.append(np.stack([np.roll(ring, -1), ring, np.full(len(ring), n)], 1).astype(np.int32))
        n += 1
    return np.concatenate(points), np.concatenate(caps)


def make_solid(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """A mesh that is certainly a solid: parted, closed, and accepted by manifold3d.

    Raises:
        MeshError: it can't be made one, and why.
    """
    import manifold3d

    vertices, faces = part(*close(*part(vertices, faces)))
    report = inspect(vertices, faces)
    if not report.watertight or report.nonmanifold_vertices:
        raise MeshError(f"no solid can be made of this mesh ({report.line()}): write it without --watertight, and look at it")
    solid = manifold3d.Manifold(manifold3d.Mesh64(np.ascontiguousarray(vertices), np.ascontiguousarray(faces, np.uint64)))
    if solid.status() != manifold3d.Error.NoError or not solid.volume() > 0:
        why = f"manifold3d says {solid.status().name}, volume {solid.volume():.4g}"
        raise MeshError(f"no solid can be made of this mesh ({why}): write it without --watertight, and look at it")
    return vertices, faces


def crossings(vertices: Floats, faces: Faces) -> int:
    """How many pairs of faces that share no vertex pass through each other.

    Faces are sorted into cells about as wide as they are; those in one cell are compared, edges of each against the other.
    """
    corners = vertices[faces]  # (f, 3, 3)
    low, high = corners.min(1), corners.max(1)
    cell = max(float(np.percentile((high - low).max(1), 90)), 1e-12)
    first = np.floor((low - vertices.min(0)) / cell).astype(np.int64)
    span = np.floor((high - vertices.min(0)) / cell).astype(np.int64) - first + 1
    count = span.prod(1)
    of = np.repeat(np.arange(len(faces)), count)
    within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    x, rest = np.divmod(within, span[of, 1] * span[of, 2])
    y, z = np.divmod(rest, span[of, 2])
    n = (first + span).max(0)
    key = ((first[of, 0] + x) * n[1] + first[of, 1] + y) * n[2] + first[of, 2] + z
    order = np.argsort(key, kind="stable")
    key, of = key[order], of[order]
    start = np.flatnonzero(np.append(True, np.diff(key) > 0))
    left = np.repeat(np.append(start[1:], len(key)), np.diff(np.append(start, len(key)))) - np.arange(len(key)) - 1  # partners after it
    found: list[Ints] = []
    ends = np.cumsum(left)
    k = 0
    while k < len(key):
        stop = max(k + 1, int(np.searchsorted(ends, (ends[k - 1] if k else 0) + _NEAR, "right")))
        a = np.repeat(np.arange(k, stop), left[k:stop])
        b = a + 1 + np.arange(len(a)) - np.repeat(np.cumsum(left[k:stop]) - left[k:stop], left[k:stop])
        i, j = of[a], of[b]
        close_by = (low[i] <= high[j]).all(1) & (low[j] <= high[i]).all(1)
        i, j = i[close_by], j[close_by]
        apart = ~(faces[i][:, :, None] == faces[j][:, None, :]).any((1, 2))
        i, j = i[apart], j[apart]
        cross = _pierces(corners[i], corners[j]) | _pierces(corners[j], corners[i])
        found.append(np.minimum(i, j)[cross] * len(faces) + np.maximum(i, j)[cross])
        k = stop
    return len(np.unique(np.concatenate(found))) if found else 0


def _pierces(a: Floats, b: Floats) -> Bools:
    """Whether an edge of triangle a passes through triangle b, (n, 3, 3) each -> (n,): signs of tetrahedra's volumes."""
    hit = np.zeros(len(a), bool)
    p, q, r = b[:, 0], b[:, 1], b[:, 2]
    normal = np.cross(q - p, r - p)
    side = np.einsum("nki,ni->nk", a - p[:, None], normal)  # (n, 3)
    for k in range(3):
        s, e = a[:, k], a[:, (k + 1) % 3]
        through = side[:, k] * side[:, (k + 1) % 3] < 0
        around = [np.einsum("ni,ni->n", e - s, np.cross(u - s, v - s)) for u, v in ((p, q), (q, r), (r, p))]
        hit |= through & (((around[0] > 0) & (around[1] > 0) & (around[2] > 0)) | ((around[0] < 0) & (around[1] < 0) & (around[2] < 0)))
    return hit


def _edge_uses(faces: Faces) -> tuple[Ints, Ints]:
    """For each edge in use how many faces have it, and how many more of them run it upwards than downwards."""
    start, end = faces.reshape(-1).astype(np.int64), np.roll(faces, -1, 1).reshape(-1).astype(np.int64)
    edge = np.minimum(start, end) * (int(faces.max(initial=0)) + 1) + np.maximum(start, end)
    order = np.argsort(edge, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(edge[order]) > 0)) if len(edge) else np.zeros(0, np.int64)
    upwards = np.where(start < end, 1, -1)[order]
    return np.diff(np.append(first, len(edge))), np.add.reduceat(upwards, first) if len(first) else first


def _mates(vertices: Floats, faces: Faces) -> Ints:
    """The mate of each half-edge, (3 f,); -1 where there is none.

    Where more than two faces share an edge, those on either side of one wedge of the solid are mates: wedges that touch stay apart.
    """
    start, end = faces.reshape(-1).astype(np.int64), np.roll(faces, -1, 1).reshape(-1).astype(np.int64)
    edge = np.minimum(start, end) * (int(faces.max(initial=0)) + 1) + np.maximum(start, end)
    order = np.argsort(edge, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(edge[order]) > 0)) if len(edge) else np.zeros(0, np.int64)
    uses = np.diff(np.append(first, len(edge)))
    mates = np.full(len(edge), -1, np.int64)
    a, b = (order[first[uses == 2] + k] for k in (0, 1))
    opposite = start[a] == end[b]
    mates[a[opposite]], mates[b[opposite]] = b[opposite], a[opposite]
    for k in np.flatnonzero(uses > 2):
        _pair_round(vertices, faces, order[first[k] : first[k] + uses[k]], mates)
    return mates


def _pair_round(vertices: Floats, faces: Faces, around: npt.NDArray[np.intp], mates: Ints) -> None:
    """Pair the half-edges of one edge in the order of their faces' angles round it, wedge by wedge of the solid."""
    flat = faces.reshape(-1)
    low = min(int(flat[around[0]]), int(faces[around[0] // 3, (around[0] + 1) % 3]))
    up = np.array([int(flat[h]) == low for h in around])  # runs away from `low`
    high = int(faces[around[0] // 3, (around[0] + 1) % 3]) if up[0] else int(flat[around[0]])
    axis = vertices[high] - vertices[low]
    axis = axis / max(float(np.linalg.norm(axis)), 1e-30)
    side = np.eye(3)[np.abs(axis).argmin()]
    side = np.cross(axis, side)
    side /= np.linalg.norm(side)
    opposite = vertices[[int(faces[h // 3, (h + 2) % 3]) for h in around]] - vertices[low]
    angle = np.arctan2(opposite @ np.cross(axis, side), opposite @ side)
    # a face that runs the edge upwards has the solid on the side of falling angles
    turn = np.lexsort((~up, angle)).tolist()
    waiting: list[int] = []
    for k in [*turn, *turn]:
        h = int(around[k])
        if mates[h] >= 0 or h in waiting:
            continue
        if up[k] and waiting:
            mates[h] = waiting.pop()
            mates[mates[h]] = h
        elif not up[k]:
            waiting.append(h)


def _fans(faces: Faces, mates: Ints) -> Ints:
    """The fan of every corner, (3 f,) from 0."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    h = np.flatnonzero(mates >= 0)
    following = h - h % 3 + (h + 1) % 3
    n = faces.size
    graph = coo_matrix((np.ones(len(h), np.int8), (following, mates[h])), (n, n))  # h ends where its mate starts
    _, fans = connected_components(graph, directed=False)
    return np.asarray(fans, np.int64)
