"""Make Optuna's samplers by name, and compute points of a Sobol sequence for `qmc`."""

from __future__ import annotations

from collections.abc import Callable

import optuna

STARTUP_TRIALS = 5  # random proposals in each stratum before a sampler fits its model
# Of NSGA-II, in each stratum. Its first generation is random; with Optuna's default of 50 most studies would end in it
POPULATION_SIZE = 12

_MAKERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION_SIZE),
    "gp": lambda seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
    ),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    # `qmc` draws nothing here: the proposer enqueues Sobol points, which set every parameter of a trial
    "qmc": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Make one of Optuna's samplers.

    Args:
        name: tpe, nsga2, gp, random or qmc, as a space has it in `search.sampler`.
        seed: of the sampler's random numbers.

    Returns:
        The sampler.

    Raises:
        KeyError: there is no such sampler. Spaces are checked before.
    """
    return _MAKERS[name](seed)


def sobol_point(dimensions: int, index: int, seed: int) -> list[float]:
    """Return one point of a scrambled Sobol sequence (Owen 1998).

    It is used instead of Optuna's QMCSampler, which samples categorical parameters at random and needs a finished trial
    before it can start.

    Args:
        dimensions: of the point; 0 gives an empty one.
        index: which point of the sequence, from 0.
        seed: of the scrambling.

    Returns:
        Coordinates in [0, 1), one for each dimension.
    """
    from scipy.stats.qmc import Sobol  # takes long to import, and only `qmc` needs it

    if dimensions == 0:
        return []
    sequence = Sobol(dimensions, scramble=True, rng=seed)
    if index:
        sequence.fast_forward(index)
    return [float(coordinate) for coordinate in sequence.random(1)[0]]
