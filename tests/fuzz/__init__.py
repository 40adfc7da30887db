"""A fuzzer of the input of `sweeps/run.py`: space files, `--set` values and plans."""
