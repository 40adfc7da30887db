"""Commands for a GPU host: a whole sweep, distillation, and the kernels."""
