"""Bayesian compression: layers whose weights have a posterior, under priors that switch whole groups off.

Source: Louizos, Ullrich, Welling 2017, "Bayesian compression for deep learning".
"""
