"""Choose what is trained next, and learn from the results.

`Search` gives out trials and keeps a study's record; `make_proposer` gives it a grid or one of Optuna's samplers;
`ProposalPrefetcher` proposes ahead in a thread. Must not import Ray, MLflow, nor any package above `trials`.
"""
