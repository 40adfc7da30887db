"""Inference from errors: intervals, paired comparisons, choice of the best, margins, and many comparisons at once.

The functions take counts or arrays of wrong images by seed and know nothing of studies, so that
`benchmarks/calibration.py` can judge them on simulated ones. Nothing here may import the rest of `analysis`.
"""
