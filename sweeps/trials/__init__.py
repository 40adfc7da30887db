"""From a point of a search space to a trial: sizes solved, counts exact, identity fixed, student and trainer built.

Entry points: `sweeps.trials.resolver.Resolver` and `sweeps.trials.build.make_trainer`.
Must not import Ray, Optuna or MLflow; of sweeps it may import `space`, `utils`, `records` and `cluster` only.
"""
