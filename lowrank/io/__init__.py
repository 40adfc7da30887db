"""Files of tensors and models: safetensors with metadata, from which no code is run.

Entry points: `save_model` and `load_model` of `model_file`; `save_tensors` and `load_tensors` of `tensor_file`.
Must not import: `lowrank.distillation`, `lowrank.training` and all that builds on them.
"""
