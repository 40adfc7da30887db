"""Compresses trained networks: calibration statistics, fits of factors to them, and allocation of ranks by error.

Entry points: `fit_in_order` and `allocate`. Nothing here reads data sets or files, and no training step is made: the
factors come from closed forms and a few rounds of weighted least squares over calibration images.
"""
