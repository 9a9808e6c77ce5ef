"""Where photographs disagree on a colour."""

import torch

from fastsurf.disputes import CELLS, HALF, Disputes
from fastsurf.rays import Batch, Rays

EDGE = 2.0 / CELLS  # of a cell
MOST = 16.0
MIDDLE = torch.full((1, 3), 0.5 * EDGE)  # of the cell behind the box's middle
NOWHERE = torch.zeros(1, 3)


def batch_at(points, directions, mask=None):
    """Rays that are at points after a way of 2."""
    n = len(points)
    rays = Rays(points - 2.0 * directions, directions, torch.zeros(n), torch.full((n,), 4.0), torch.zeros(n, dtype=torch.int64))
    return Batch(rays, torch.zeros(n, 3), mask)


def along(*direction):
    return torch.nn.functional.normalize(torch.tensor([direction]), dim=1)


def noted(errors, points=MIDDLE, direction=(1.0, 1.0, 1.0), times=1, **changes):
    """Disputes that were told `times` of rays with these errors."""
    disputes = Disputes(MOST, torch.device("cpu"))
    errors = torch.as_tensor(errors)
    n = len(errors)
    more = {"hit": torch.ones(n, dtype=torch.bool), "mask": None} | changes
    batch = batch_at(points.expand(n, 3), along(*direction).expand(n, 3), more["mask"])
    for _ in range(times):
        disputes.note(batch, torch.full((n,), 2.0), more["hit"], errors)
    return disputes


def emphasis(disputes, points=MIDDLE, direction=(1.0, 1.0, 1.0), jitter=NOWHERE):
    return float(disputes.emphasis(points, along(*direction), jitter))


def test_nothing_is_disputed_at_first():
    assert emphasis(Disputes(MOST, torch.device("cpu"))) == 1.0


def test_a_highlight_from_one_side_is_disputed_from_there_alone():
    disputes = noted([[0.2, 0.1, 0.1]], times=200)
    share = 0.4 / (0.4 + HALF)
    assert abs(emphasis(disputes) - (1 + MOST * share**2)) < 1e-3
    assert emphasis(disputes, direction=(1.0, 1.0, -1.0)) == 1.0
    assert emphasis(disputes, MIDDLE + EDGE) == 1.0


def test_detail_that_is_not_learned_yet_is_not_disputed():
    """Its errors are off either way; those of a highlight as large are off one way."""
    g = torch.Generator().manual_seed(0)
    detail, off, found = Disputes(MOST, torch.device("cpu")), 0.1 * torch.ones(8, 3), []
    for _ in range(200):
        sign = torch.randint(2, (8, 1), generator=g) * 2.0 - 1.0
        at = batch_at(MIDDLE.expand(8, 3), along(1.0, 1.0, 1.0).expand(8, 3))
        detail.note(at, torch.full((8,), 2.0), torch.ones(8, dtype=torch.bool), sign * off)
        found.append(emphasis(detail))
    assert (sum(found) / len(found) - 1) * 2 < emphasis(noted(off, times=50)) - 1


def test_some_rays_do_not_count():
    errors = [[0.3, 0.3, 0.3], [0.0, 0.0, 0.0]]
    whole = noted(errors, times=300)
    assert abs(emphasis(whole) - emphasis(noted([[0.15, 0.15, 0.15]], times=300))) < 0.5
    assert emphasis(noted(errors, hit=torch.tensor([False, True]))) == 1.0
    assert emphasis(noted(errors, mask=torch.tensor([0.5, 1.0]))) == 1.0, "at a mask's border the surroundings have a share"
    assert emphasis(noted([[float("nan"), 0.3, 0.3], [0.0, 0.0, 0.0]])) == 1.0
    assert torch.equal(noted(torch.zeros(0, 3)).errors, torch.zeros(8 * CELLS**3, 3))


def test_chance_mixes_neighbouring_cells():
    """Averaged over the jitter, emphasis has no edges where cells have theirs."""
    disputes, g = noted([[0.3, 0.3, 0.3]], times=100), torch.Generator().manual_seed(0)
    jitter = torch.rand(4000, 3, generator=g) * 2 - 1
    jitter[:, 1:] = 0
    directions = along(1.0, 1.0, 1.0).expand(4000, 3)
    at = [(MIDDLE + torch.tensor([x * EDGE, 0, 0])).expand(4000, 3) for x in (0.0, 0.49, 0.51, 0.98)]
    found = [float(disputes.emphasis(points, directions, jitter).mean()) for points in at]
    assert found[0] > 2 and abs(found[1] - found[2]) < 0.1 * found[0] and found[3] < 1 + 0.1 * (found[0] - 1)


def test_points_outside_the_box_are_in_its_outer_cells():
    disputes = noted([[0.3, 0.3, 0.3]], points=torch.tensor([[1.0, 5.0, -3.0]]))
    assert emphasis(disputes, torch.tensor([[0.999, 0.999, -0.999]])) > 1.0
