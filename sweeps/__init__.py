"""Searches over structured substitutions: space files, Optuna, Ray Tune and the one writer of records."""
