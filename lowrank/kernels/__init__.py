"""Triton kernels for operations that GPU libraries are slow at, and the pass that puts them into a compiled graph.

Entry points: `dispatch` tells what a machine supports and loads a module of kernels; `fx_rewrite.compile_graph` is the
backend for `torch.compile`. Modules of kernels need Triton: import them only where `dispatch` says that they can run.
Must not import any package of this project but `lowrank.errors` and `lowrank.utils`.
"""
