"""Optuna's samplers by name, and points spread evenly by a Sobol sequence."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from scipy.stats.qmc import Sobol

STARTUP_TRIALS = 5  # random proposals in each stratum before a sampler models it
POPULATION = 12  # NSGA-II's in each stratum; Optuna's 50 would be random search to the end of most studies

_MAKERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
    ),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # of what a Sobol point leaves open: nothing
}


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a space names."""
    return _MAKERS[name](seed)


def spread(width: int, index: int, seed: int) -> list[float]:
    """The point number `index` of a scrambled Sobol sequence (Owen 1998) in `width` dimensions, each in [0, 1).

    Optuna's own quasi-random sampler draws choices at random and needs a finished trial first; this one does neither.
    """
    if width == 0:
        return []
    sequence = Sobol(width, scramble=True, rng=seed)
    if index:
        sequence.fast_forward(index)
    return [float(share) for share in sequence.random(1)[0]]
