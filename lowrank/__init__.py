"""Structured linear maps for torch networks: layers, counting, budgets, substitution and training."""
