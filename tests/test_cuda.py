"""The backend of tinycudann and nerfacc: without a GPU its layout, its errors and its arithmetic over stand-ins; with one, all of it."""

import sys
import types

import pytest
import torch
from test_backends import REFERENCE, Problem, assert_near
from torch import nn

from fastsurf.backends import choose_backend, cuda, survey
from fastsurf.backends.cuda import CudaBackend, encoding_config
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.config import FieldConfig
from fastsurf.encoding import FEATURES, Level, entries, growth, level_table, stable_finest
from fastsurf.errors import BackendError
from fastsurf.rays import intersect_box

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class Encoding(nn.Module):
    """Stands in for tinycudann.Encoding: the reference, behind the same interface."""

    def __init__(self, n_inputs, config, dtype):
        super().__init__()
        assert n_inputs == 3 and config["otype"] == "HashGrid" and config["n_features_per_level"] == FEATURES and dtype == torch.float32
        self.levels = level_table(config["n_levels"], config["log2_hashmap_size"], config["base_resolution"], config["per_level_scale"])
        self.params = nn.Parameter(torch.zeros(FEATURES * entries(self.levels)))

    def forward(self, x):
        assert x.dtype == self.params.dtype and self.params.ndim == 1 and len(x)
        return REFERENCE.encode(x, self.params.view(-1, FEATURES), self.levels)


class OccGridEstimator(nn.Module):
    """Stands in for nerfacc's on a grid that is nowhere empty or everywhere: steps from t_min, kept where their middle lies inside."""

    def __init__(self, roi_aabb, resolution, levels):
        super().__init__()
        assert roi_aabb == [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0] and levels == 1
        self.register_buffer("binaries", torch.zeros(1, resolution, resolution, resolution, dtype=torch.bool))

    def sampling(self, rays_o, rays_d, near_plane, t_min, t_max, render_step_size, early_stop_eps):
        assert len(rays_o) and torch.isfinite(torch.cat([rays_o, rays_d, t_min[:, None], t_max[:, None]], 1)).all() and early_stop_eps == 0
        begin = torch.maximum(t_min, torch.full_like(t_min, near_plane))[:, None] + torch.arange(400) * render_step_size
        middle = begin + 0.5 * render_step_size
        near, far = intersect_box(rays_o, rays_d)
        inside = (middle >= near[:, None]) & (middle < torch.minimum(far, t_max)[:, None]) & self.binaries.all()
        ray, k = inside.nonzero(as_tuple=True)
        return ray, begin[ray, k], begin[ray, k] + render_step_size


@pytest.fixture
def backend(monkeypatch):
    """The backend on a CPU, over the stand-ins."""
    tcnn, nerfacc = types.ModuleType("tinycudann"), types.ModuleType("nerfacc")
    tcnn.Encoding, nerfacc.OccGridEstimator = Encoding, OccGridEstimator
    monkeypatch.setitem(sys.modules, "tinycudann", tcnn)
    monkeypatch.setitem(sys.modules, "nerfacc", nerfacc)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda.torch, "device", lambda *_: "cpu")
    monkeypatch.setattr(cuda, "_others", lambda precision, device: ReferenceBackend())
    return CudaBackend()


def test_field_and_its_second_order_term_go_through_tinycudann(backend):
    problem = Problem(8, 64, 16, 200)

    def values(kernels, kind):
        x, table, weights = problem.cast(kind)
        out, gradient = kernels.field(x, table, problem.levels, weights)
        by = problem.d_out.to(kind), problem.d_gradient.to(kind)
        first = torch.autograd.grad(out, (table, *weights), by[0], retain_graph=True)
        return out, gradient, kernels.field_value(x, table, problem.levels, weights), *first, *torch.autograd.grad(
            (out, gradient), (table, *weights), by
        )

    assert_near(values(backend, torch.float32), values(REFERENCE, torch.float64))
    with torch.no_grad():
        out, gradient = backend.field(problem.x, problem.table, problem.levels, problem.weights)
    assert not out.requires_grad and not gradient.requires_grad
    assert backend.field(problem.x[:0], problem.table, problem.levels, problem.weights)[1].shape == (0, 3)


def test_steps_keep_our_lattice_and_rays_that_are_not_finite_never_reach_nerfacc(backend):
    g = torch.Generator().manual_seed(0)
    origins = torch.randn(50, 3, generator=g) * 3
    directions = torch.nn.functional.normalize(0.5 * torch.randn(50, 3, generator=g) - origins, dim=1)
    near, far = intersect_box(origins, directions)
    near = near + 0.03 * torch.rand(50, generator=g)
    origins[7], directions[9], far[11], near[13] = float("nan"), float("inf"), float("nan"), float("inf")
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    for occupied, most in ((full, 200), (full, 5), (~full, 200)):
        t, count = backend.occupied_steps(origins, directions, near, far, occupied, 0.05, most)
        wanted, n = REFERENCE.occupied_steps(origins, directions, near, far, occupied, 0.05, most)
        ok = torch.isfinite(origins).all(1) & torch.isfinite(directions).all(1) & torch.isfinite(far) & torch.isfinite(near)
        assert torch.equal(count[ok], n[ok]) and not count[~ok].any()
        torch.testing.assert_close(t[ok], wanted[ok])
    assert backend.occupied_steps(origins[:0], origins[:0], near[:0], far[:0], full, 0.1, 9)[1].shape == (0,)


@pytest.mark.parametrize("finest", [128, 501, 1024, 1357, 2048])
@pytest.mark.parametrize("levels, log2_entries", [(1, 15), (2, 19), (8, 15), (12, 18), (16, 19)])
def test_tinycudann_is_told_a_growth_that_gives_exactly_our_table(levels, log2_entries, finest):
    finest = stable_finest(levels, log2_entries, 16, finest)
    table = level_table(levels, log2_entries, 16, growth(levels, 16, finest))
    config = encoding_config(table)
    assert level_table(config["n_levels"], config["log2_hashmap_size"], config["base_resolution"], config["per_level_scale"]) == table


def test_a_table_that_tinycudann_can_not_make_is_refused():
    with pytest.raises(BackendError, match="no growth gives"):
        encoding_config((Level(15.0, 16, 0, 4096), Level(20.0, 21, 4096, 9264), Level(90.0, 91, 13360, 2**15)))


def test_another_layout_is_refused(backend, monkeypatch):
    monkeypatch.setattr(cuda, "entries", lambda levels: entries(levels) + 8)
    cuda._encoding.cache_clear()
    with pytest.raises(BackendError, match="lays out"):
        CudaBackend()
    cuda._encoding.cache_clear()


@NO_GPU
def test_without_a_gpu_one_line_says_so():
    with pytest.raises(BackendError, match=r"^no NVIDIA GPU .*--backend native$"):
        choose_backend("cuda")
    assert choose_backend("auto").name in ("native", "reference")
    assert not {found.name: found.usable for found in survey()}["cuda"]


@pytest.mark.parametrize("package, find", [("tinycudann", cuda._tinycudann), ("nerfacc", cuda._nerfacc)])
def test_a_missing_package_is_named_with_its_command(monkeypatch, package, find):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"^{package} is missing .*pip install .*--backend triton"):
        find()


@pytest.mark.parametrize("error", [OSError("Unknown compute capability\nand more"), RuntimeError("no kernel image"), AttributeError("_C")])
def test_a_package_that_is_there_but_broken_is_one_line(backend, monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(Encoding, "forward", broken)
    with pytest.raises(BackendError, match="tinycudann is installed but does not work") as caught:
        CudaBackend()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()


def test_a_broken_nerfacc_is_one_line(backend, monkeypatch):
    monkeypatch.setattr(OccGridEstimator, "sampling", lambda *_, **__: getattr(None, "traverse_grids"))  # noqa: B009
    with pytest.raises(BackendError, match="nerfacc is installed but does not work"):
        CudaBackend()


def test_a_nerfacc_that_finds_other_steps_is_refused(backend, monkeypatch):
    monkeypatch.setattr(OccGridEstimator, "sampling", lambda *_, **__: (torch.zeros(2, dtype=torch.int64), torch.zeros(2), torch.zeros(2)))
    with pytest.raises(BackendError, match="finds 2 steps where there are 4"):
        CudaBackend()


def test_a_lock_left_by_a_broken_build_is_refused_not_waited_for(tmp_path, monkeypatch):
    lock = tmp_path / "nerfacc_cuda" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cuda._refuse_stale_lock()  # a build may be under way
    monkeypatch.setattr(cuda, "STALE", -1.0)
    with pytest.raises(BackendError, match=r"remove .*nerfacc_cuda"):
        cuda._refuse_stale_lock()


def test_auto_takes_what_works(monkeypatch):
    """With a GPU: triton, else cuda, else the CPU with a word on why."""
    import fastsurf.backends as backends

    def broken():
        raise BackendError("broken: mend it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    makers = {name: (lambda name=name: types.SimpleNamespace(name=name, note="")) for name in ("triton", "cuda", "native", "reference")}
    monkeypatch.setattr(backends, "_makers", lambda *_: makers)
    assert choose_backend().name == "triton"
    makers["triton"] = broken
    assert choose_backend().name == "cuda" and not choose_backend().note
    makers["cuda"] = broken
    assert choose_backend().name == "native" and "broken: mend it" in choose_backend().note
    makers["native"] = broken
    assert choose_backend().name == "reference"


def test_the_default_field_has_a_layout_that_tinycudann_can_make():
    c = FieldConfig()
    for finest in range(512, 2049, 64):
        finest = stable_finest(c.levels, c.log2_entries, c.base_resolution, finest)
        encoding_config(level_table(c.levels, c.log2_entries, c.base_resolution, growth(c.levels, c.base_resolution, finest)))
