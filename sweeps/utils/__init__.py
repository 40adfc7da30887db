"""Small helpers of all packages of sweeps: clock, signals, durations, addresses, provenance.

Must not import any other package of sweeps, nor torch or Ray when it is imported.
"""
