"""Whole studies: turnaround, logging, reports, scale, and plain Ray Tune for comparison."""
