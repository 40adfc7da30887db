"""From a network with variational layers to a smaller plain one: removal of groups, budgets and bit widths.

Source: Louizos, Ullrich, Welling 2017, "Bayesian compression for deep learning".
"""
