"""Training of one network: recipes, optimizer, objective, metrics and the loop around them.

Entry point: `lowrank.training.trainer.Trainer`, made from a network, an image data set and a `Recipe`. `engine` holds
what runs a single step: plain, as a CUDA graph, compiled, or in several processes. Nothing here imports
lowrank.deployment or a command, and nothing knows of Ray, Optuna or MLflow.
"""
