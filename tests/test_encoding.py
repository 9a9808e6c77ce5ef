"""The layout of the hash encoding against tiny-cuda-nn's, written here once more with plain integers."""

import itertools
import math

import pytest
import torch

from fastsurf.backends.reference import ReferenceBackend
from fastsurf.encoding import Level, entries, growth, level_table


def index_of(level: Level, vertex: tuple[int, int, int]) -> int:
    """Entry of an integer vertex, relative to the level's offset."""
    x, y, z = vertex
    if level.size < level.resolution**3:
        return (x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32 % level.size
    return (x + y * level.resolution + z * level.resolution**2) % 2**32 % level.size


def encode_one(x: list[float], table: torch.Tensor, levels: tuple[Level, ...]) -> list[float]:
    """Encoding of one position, corner by corner."""
    out = []
    for level in levels:
        p = [level.scale * v + 0.5 for v in x]
        cell = [math.floor(v) for v in p]
        blend = torch.zeros(2, dtype=torch.float64)
        for corner in itertools.product((0, 1), repeat=3):
            w = math.prod(p[d] - cell[d] if corner[d] else 1 - (p[d] - cell[d]) for d in range(3))
            blend += w * table[level.offset + index_of(level, tuple(c + o for c, o in zip(cell, corner, strict=True)))]
        out += blend.tolist()
    return out


def test_table_of_the_usual_configuration():
    levels = level_table(16, 19, 16, growth(16, 16, 2048))
    assert 2 * entries(levels) == 12_196_240  # as in public checkpoints (tiny-cuda-nn issue 338)
    assert [v.resolution for v in levels[:6]] == [16, 23, 31, 43, 59, 81]
    assert [v.size for v in levels[:6]] == [4096, 12168, 29792, 79512, 205384, 524288]
    assert [v.hashed for v in levels] == [False] * 5 + [True] * 11
    assert all(a.offset + a.size == b.offset for a, b in itertools.pairwise(levels))


def test_border_between_dense_and_hashed():
    (dense,), (hashed,) = level_table(1, 19, 80, 1.0), level_table(1, 19, 81, 1.0)
    assert (dense.resolution, dense.size, dense.hashed) == (80, 512_000, False)
    assert (hashed.resolution, hashed.size, hashed.hashed) == (81, 524_288, True)


def test_layout_that_rounding_could_change_is_refused():
    with pytest.raises(ValueError, match="too close to an integer"):
        level_table(16, 19, 16, growth(16, 16, 512))  # tiny-cuda-nn issue 148


@pytest.mark.parametrize(
    ("base", "log2_entries", "vertex", "index"),
    [
        (16, 19, (16, 16, 16), 272),  # 4368 modulo 4096
        (5, 19, (5, 5, 5), 27),  # 155 modulo 128, the size rounded up to 8
        (81, 19, (3, 5, 7), 329_061),  # hashed
        (81, 19, (80, 80, 80), 350_608),
    ],
)
def test_entries_of_vertices(base, log2_entries, vertex, index):
    (level,) = level_table(1, log2_entries, base, 1.0)
    assert index_of(level, vertex) == index
    table = torch.zeros(level.size, 2, dtype=torch.float64)
    table[index, 1] = 1.0
    x = (torch.tensor([vertex], dtype=torch.float64) - 0.5) / level.scale  # exactly there, so that one corner has all the weight
    torch.testing.assert_close(ReferenceBackend().encode(x, table, (level,)), torch.tensor([[0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_reference_agrees_with_the_layout_everywhere(kind):
    levels = level_table(6, 11, 4, growth(6, 4, 70))  # dense and hashed, sizes that are no multiple of 8 before rounding
    assert {v.hashed for v in levels} == {False, True}
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(entries(levels), 2, generator=generator).to(torch.float64)
    below_one = 1 - 2**-24
    corners = list(itertools.product((0.0, 0.5, below_one, 1.0), repeat=3))
    x = torch.cat([torch.tensor(corners), torch.rand(50, 3, generator=generator), torch.tensor([[-0.3, 1.4, 0.5], [3.0, -2.0, 0.1]])])
    wanted = torch.tensor([encode_one(p, table, levels) for p in x.to(torch.float64).tolist()], dtype=torch.float64)
    found = ReferenceBackend().encode(x.to(kind), table.to(kind), levels)
    torch.testing.assert_close(found.to(torch.float64), wanted, atol=1e-12 if kind == torch.float64 else 2e-4, rtol=0)


def test_the_reference_takes_points_in_any_layout():
    levels = level_table(6, 11, 4, growth(6, 4, 70))
    table, x = torch.randn(entries(levels), 2), torch.rand(50, 3)
    turned = x.T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(ReferenceBackend().encode(turned, table, levels), ReferenceBackend().encode(x, table, levels))
