"""From a study's records to answers: tables, Pareto fronts and pictures."""
