"""Kernels for what a GPU's libraries are slow at."""
