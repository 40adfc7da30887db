"""Counts the parameters and mult-adds of a network, solves budgets, and substitutes its layers.

Entry points: `substitute` replaces the layers of any `nn.Module`; `network_plan` plans a named network; `solve` finds
the largest setting of a method within a `Budget`; `build_sized_student` builds a network from plain settings.
Must not import `lowrank.io`, `distillation`, `training`, `deployment` or a command.
"""
