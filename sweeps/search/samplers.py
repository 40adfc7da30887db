"""Optuna's samplers by name, and points spread evenly by a Sobol sequence."""

from __future__ import annotations

from collections.abc import Callable

import optuna

STARTUP_TRIALS = 5  # random proposals in each stratum before a sampler models it
POPULATION = 12  # NSGA-II's in each stratum; Optuna's 50 would be random search to the end of most studies

_MAKERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
    ),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    # The proposer enqueues Sobol points, which fix every field; Optuna's sampler draws nothing
    "qmc": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Make one of Optuna's samplers.

    Args:
        name: as a space names it: tpe, nsga2, gp, random or qmc.
        seed: of its random numbers.

    Returns:
        The sampler.
    """
    return _MAKERS[name](seed)


def sobol_point(width: int, index: int, seed: int) -> list[float]:
    """Return one point of a scrambled Sobol sequence (Owen 1998).

    Optuna's own quasi-random sampler draws choices at random and needs a finished trial first; this one does neither.

    Args:
        width: the number of dimensions; 0 gives an empty point.
        index: which point of the sequence, from 0.
        seed: of the scrambling.

    Returns:
        `width` coordinates in [0, 1).
    """
    from scipy.stats.qmc import Sobol  # takes long to import, and only `qmc` needs it

    if width == 0:
        return []
    sequence = Sobol(width, scramble=True, rng=seed)
    if index:
        sequence.fast_forward(index)
    return [float(coordinate) for coordinate in sequence.random(1)[0]]
