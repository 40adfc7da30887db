"""How one training step is run: plain, recorded as a CUDA graph, compiled, in a number format, by several processes.

Entry point: `lowrank.training.engine.step.TrainStep`. Arrows: trainer -> captured_evaluation ->
cuda_graph -> step; only memory_probe, which measures whole trainers, imports lowrank.training.trainer.
"""
