"""Search spaces: YAML files read and checked into frozen objects, their points and their strata of size.

Entry points: `sweeps.space.parse.read_space` and `sweeps.space.model.Space`.
Importing this package loads neither torch nor Optuna nor Ray; functions that need one of them import it.
Must not import any other package of `sweeps`.
"""
