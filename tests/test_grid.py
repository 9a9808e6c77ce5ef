import torch
from solids import Sphere

from fastsurf.config import GridConfig
from fastsurf.grid import OccupancyGrid, dilate


def opacity(x):
    return torch.sigmoid(200.0 * Sphere().level(x))


def middles(g):
    axis = (torch.arange(g) + 0.5) * (2.0 / g) - 1.0
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def test_everything_is_in_use_until_looked_at():
    assert OccupancyGrid(GridConfig(resolution=8), 24).occupied.all()


def test_the_grid_keeps_the_solid_and_drops_empty_space():
    grid, generator = OccupancyGrid(GridConfig(resolution=32), 24), torch.Generator().manual_seed(0)
    grid.update(opacity, generator, everywhere=True)
    for _ in range(10):
        grid.update(opacity, generator)
    depth = Sphere().level(middles(32).view(-1, 3)).view(32, 32, 32)
    cell = 2.0 / 32
    assert grid.occupied[depth > -cell].all()
    assert not grid.occupied[depth < -0.1 - 3 * cell].any()
    assert grid.share < 0.25


def test_culled_samples_cost_less_than_the_error_budget():
    config = GridConfig(resolution=32, error_budget=1 / 255)
    for samples in (8, 24, 256):
        threshold = OccupancyGrid(config, samples).threshold
        assert 1 - (1 - threshold) ** samples <= 1 / 255 + 1e-12


def test_cells_are_indexed_x_y_z():
    grid, generator = OccupancyGrid(GridConfig(resolution=16, decay=0.0), 24), torch.Generator().manual_seed(0)
    grid.update(lambda x: torch.where(x[:, 0] > 0.6, 1.0, 0.0), generator, everywhere=True)
    assert grid.occupied[14, 3, 9] and not grid.occupied[3, 14, 9] and not grid.occupied[3, 9, 14]


def test_new_matter_is_noticed():
    grid, generator = OccupancyGrid(GridConfig(resolution=16, decay=0.0), 24), torch.Generator().manual_seed(0)
    grid.update(lambda x: torch.zeros(len(x)), generator, everywhere=True)
    assert grid.share == 0
    for _ in range(60):  # an eighth of the empty cells each time
        grid.update(opacity, generator)
    assert grid.occupied[8, 8, 8]


def test_matter_that_went_away_is_forgotten():
    grid, generator = OccupancyGrid(GridConfig(resolution=16), 24), torch.Generator().manual_seed(0)
    grid.update(lambda x: torch.ones(len(x)), generator, everywhere=True)
    assert grid.share == 1
    for _ in range(40):
        grid.update(opacity, generator)
    assert grid.share < 0.5


def test_updates_repeat_with_their_seed():
    grids = [OccupancyGrid(GridConfig(resolution=16), 24) for _ in range(2)]
    for grid in grids:
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            grid.update(opacity, generator)
    assert torch.equal(grids[0].values, grids[1].values)


def test_dilation_reaches_the_26_neighbours_and_no_further():
    cells = torch.zeros(7, 7, 7, dtype=torch.bool)
    cells[3, 3, 3] = cells[0, 0, 6] = True
    grown = dilate(cells)
    assert grown[2:5, 2:5, 2:5].all() and grown[0:2, 0:2, 5:7].all() and grown.sum() == 27 + 8
