"""Files of tensors and models, from which no code is run, and what weights expect of an image.

Entry points: `save_model` and `load_model` of `model_file`; `load_weights` of `weight_files`;
`find_preprocessing` of `preprocessing`; `save_tensors` and `load_tensors` of `tensor_file`.
Must not import: `lowrank.distillation`, `lowrank.training` and all that builds on them.
"""
