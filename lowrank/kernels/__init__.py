"""Triton kernels for operations that a GPU's libraries are slow at, and the pass that puts them into a graph.

Entry points: `dispatch` says what a machine supports and loads a module of kernels; `fx_rewrite.compile_graph` is the
backend for `torch.compile`. Modules of kernels import Triton, so import them only after `dispatch` has said that they
can be used. Must not import any package of this project but `lowrank.errors` and `lowrank.utils`.
"""
