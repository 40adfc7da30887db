"""Run studies: start, resume, plan, series, training recorded trials again, final evaluation.

`sweeps/run.py` calls `start_study`, `resume_study`, `start_retraining` (start.py) and `start_series` (run_series.py);
`run_study` (driver.py) runs one. This is the uppermost package of sweeps: only the commands import it. Must not import
analysis.
"""
