"""Helpers without a subject of their own: files, locks, texts, command lines, processes.

Entry points: the modules, among them `atomic_write`, `locks`, `text`, `cli` and `validation`.
Must not import: anything of the project except `lowrank.errors`; only `hooks` and `torchvision_compat` import torch.
"""
