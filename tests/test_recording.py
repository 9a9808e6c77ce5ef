"""Recorded work does what plain work does. Needs a GPU."""

import pytest
import torch
from torch import nn

from fastsurf.backends import choose_backend
from fastsurf.config import load_config
from fastsurf.demo_scene import make_scene
from fastsurf.model import Model
from fastsurf.reconstruction import fit_to
from fastsurf.recording import Recording
from fastsurf.scene import load_scene
from fastsurf.training import Training, learn, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SETTINGS = ["train.steps=120", "train.rays=256", "field.levels=6", "field.log2_entries=12", "grid.resolution=32", "mesh.resolution=64"]


@pytest.fixture
def recorded():
    """p * x + noise, summed: its gradient is x."""
    p, x = nn.Parameter(torch.ones(3, device="cuda")), torch.tensor([1.0, 2.0, 3.0], device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)

    def work():
        noise = torch.rand(3, generator=generator, device="cuda")
        loss = (p * x).sum()
        loss.backward()
        return torch.stack([loss.detach(), noise.sum()])

    return Recording(work, [p], generator), p, x


def test_each_call_draws_anew_reads_what_is_there_and_answers_with_the_call_before(recorded):
    recording, p, x = recorded
    first = recording().clone()
    x.mul_(10)
    assert torch.equal(recording(), first) and torch.equal(p.grad, x)
    second = recording().clone()
    assert second[0] == 10 * first[0] and second[1] != first[1]


def test_numbers_that_are_not_finite_leave_no_gradient(recorded):
    recording, p, x = recorded
    x[1] = float("nan")
    recording()
    assert torch.equal(p.grad.cpu(), torch.zeros(3))
    x[1] = 2.0
    recording()
    assert torch.equal(p.grad, x)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "scene"
    make_scene(folder, views=8, test=0, size=64)
    return load_scene(folder)


def training(scene, *, capturable, settings=()):
    backend = choose_backend("triton")
    backend.capturable = capturable
    config = fit_to(scene, load_config(None, [*SETTINGS, *settings]))
    return Training(scene, Model(config, backend, "random"), backend)


def test_a_recorded_step_has_the_losses_and_gradients_of_a_plain_one(scene):
    plain, recorded = (training(scene, capturable=capturable) for capturable in (False, True))
    recorded.prepare()
    for run in (plain, recorded):
        run.generator.manual_seed(7)
        run.model.set_progress(0.3)
    wanted = learn(plain)
    found = recorded.prepare()()
    torch.testing.assert_close(found, wanted.cpu(), rtol=1e-4, atol=1e-6)
    for (name, p), q in zip(plain.model.named_parameters(), recorded.model.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-3 * p.grad.norm(), name


def test_training_recorded_learns_as_well_as_plain(scene):
    last = [list(train(training(scene, capturable=capturable)))[-1] for capturable in (False, True)]
    assert last[0].step == last[1].step == 120 and abs(last[0].psnr - last[1].psnr) < 1.0
    assert last[1].psnr > 15


def test_work_that_can_not_be_recorded_goes_on_plainly_and_says_so(scene, monkeypatch):
    import fastsurf.training as module

    monkeypatch.setattr(module, "learn", lambda run: learn(run) * float(learn(run).sum().item() > 0))  # waits for the GPU
    run = training(scene, capturable=True, settings=["train.steps=3"])
    states = list(train(run))
    assert len(states) == 3 and "can't be recorded" in run.note
