"""Points of a Sobol sequence fill the cube evenly and do not depend on which were asked for before."""

from __future__ import annotations

import pytest

from sweeps.search.samplers import make_sampler, sobol_point


def test_every_half_of_each_axis_has_half_of_the_points():
    points = [sobol_point(3, index, seed=7) for index in range(16)]
    assert all(0 <= coordinate < 1 for point in points for coordinate in point)
    for axis in range(3):
        assert sum(point[axis] < 0.5 for point in points) == 8
    assert points[5] == sobol_point(3, 5, seed=7)
    assert points[5] != sobol_point(3, 5, seed=8)
    assert sobol_point(0, 3, seed=7) == []


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp", "random", "qmc"])
def test_every_sampler_is_made(name):
    assert make_sampler(name, 0) is not make_sampler(name, 0)


def test_an_unknown_sampler_is_an_error():
    with pytest.raises(KeyError):
        make_sampler("annealing", 0)
