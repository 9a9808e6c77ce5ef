"""Gains of photographs, from points whose light is known."""

import numpy as np
import pytest

from fastsurf.exposure import coded, evened, gains, linear

N, K, P = 10, 4, 4000


def sightings(stops, seed=0, noise=0.02):
    """Colours (P, K, 3), photographs (P, K), and the light (P, 3) of points that K of the N photographs show."""
    rng = np.random.default_rng(seed)
    light = np.exp2(rng.uniform(-4, -1.5, (P, 1, 3)))
    whose = np.stack([rng.permutation(N)[:K] for _ in range(P)])
    seen = 255 * coded(light * np.exp2(stops[whose] + noise * rng.standard_normal((P, K, 3))))
    return seen.clip(0, 255).round().astype(np.uint8), whose, light[:, 0]


def known(size, seed=1):
    stops = size * np.random.default_rng(seed).uniform(-1, 1, (N, 3))
    return stops - stops.mean(0)


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_gains_are_found_and_undone(size):
    stops = known(size)
    seen, whose, light = sightings(stops)
    found = gains(seen, whose, np.ones((P, K), bool), N)
    np.testing.assert_allclose(found, stops, atol=0.03)
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-9)
    even, clipped = evened(seen, whose, found)
    assert not clipped.any() and np.abs(even - 255 * coded(light)[:, None]).mean() < 2


def test_a_quarter_of_what_is_seen_may_be_passers_by():
    stops = known(0.7)
    seen, whose, _ = sightings(stops)
    crowd = np.random.default_rng(2).random((P, K)) < 0.25
    seen[crowd] = np.random.default_rng(3).integers(0, 256, (crowd.sum(), 3))
    np.testing.assert_allclose(gains(seen, whose, np.ones((P, K), bool), N), stops, atol=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_photographs_alike_but_for_noise_are_left_alone(noise):
    seen, whose, _ = sightings(np.zeros((N, 3)), noise=noise)
    assert not gains(seen, whose, np.ones((P, K), bool), N).any()


def test_shading_is_not_exposure():
    """A third of a stop between photographs, but more than that between views of a point in no order that gains explain."""
    seen, whose, _ = sightings(known(0.2), noise=0.5)
    assert not gains(seen, whose, np.ones((P, K), bool), N).any()


def test_a_photograph_on_its_own_has_no_gain():
    """Nothing is shared with it, or there is nothing at all."""
    seen, whose, _ = sightings(known(1.0))
    alone = whose == 3
    assert (gains(seen, whose, ~alone, N)[3] == 0).all() and np.abs(gains(seen, whose, ~alone, N)).max() > 0.5
    assert not gains(seen[:0], whose[:0], np.ones((0, K), bool), N).any()
    assert gains(seen, whose, np.zeros((P, K), bool), N).shape == (N, 3)


def test_what_is_too_bright_to_tell_is_said():
    seen = np.array([[[255, 100, 100]], [[255, 100, 100]], [[100, 100, 100]]], np.uint8)
    even, clipped = evened(seen, np.array([[0], [1], [0]]), np.array([[1.0] * 3, [-1.0] * 3]))
    assert clipped.ravel().tolist() == [True, False, False]
    np.testing.assert_allclose(linear(even[2, 0]), 0.5 * linear(seen[2, 0]), atol=2e-3)


def test_light_and_bytes():
    np.testing.assert_allclose(255 * coded(linear(np.arange(256))), np.arange(256), atol=1e-6)
