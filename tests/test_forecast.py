"""The time left, against runs as they were."""

import math

import numpy as np
import pytest

from fastsurf.forecast import Forecast

RECORDED = {  # seconds that each twentieth of the steps took, on two cores that others used as well
    "dtu65": (9.16, 7.18, 5.95, 6.32, 5.63, 5.8, 6.82, 6.61, 7.36, 5.7, 5.16, 4.99, 5.48, 6.58, 5.87, 4.97, 5.05, 4.95, 5.09, 5.33),
    "object": (3.87, 2.59, 2.29, 2.03, 1.98, 2.0, 1.95, 2.0, 2.07, 2.26, 2.36, 2.17, 2.21, 2.12, 2.25, 2.36, 2.24, 2.22, 2.24, 2.22),
    "smooth off": (4.35, 3.13, 3.69, 3.28, 2.75, 2.67, 2.58, 2.66, 2.3, 2.33, 3.2, 2.8, 2.53, 2.4, 2.49, 2.32, 2.4, 2.71, 2.84, 2.92),
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("steps", [24, 1500])
def test_the_time_left_is_right_within_a_fifth_after_a_tenth(name, steps):
    ends = np.interp(np.arange(1, steps + 1) / steps, np.arange(21) / 20, [0, *np.cumsum(RECORDED[name])])
    forecast = Forecast()
    forecast(0.0, 0.0)
    told = np.array([forecast(k / steps, end) for k, end in enumerate(ends[:-1], 1)])
    wrong = told / (ends[-1] - ends[:-1]) - 1.0
    late = np.arange(1, steps) >= 0.1 * steps
    assert np.abs(wrong[late]).max() < 0.25 and np.mean(np.abs(wrong[late]) < 0.2) > 0.95
    by_the_mean = ends[:-1] * (steps - np.arange(1, steps)) / np.arange(1, steps) / (ends[-1] - ends[:-1]) - 1.0
    assert np.abs(wrong[late]).max() < np.abs(by_the_mean[late]).max()


def test_a_resumed_run_is_forecast_from_what_it_does_now():
    """The seconds before were another machine's."""
    forecast = Forecast()
    assert forecast(0.5, 1000.0) == math.inf
    for k in range(1, 400):
        left = forecast(0.5 + k / 1000, 1000.0 + 0.01 * k)
    assert left == pytest.approx(1.01, rel=0.05)
    assert forecast(1.0, 1005.0) == 0.0


def test_a_run_that_has_just_begun_knows_nothing():
    forecast = Forecast()
    assert forecast(0.0, 0.0) == math.inf and 0 < forecast(0.001, 0.1) < 200
