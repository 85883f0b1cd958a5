"""One training run, or the folds of one, from its config to its report.

run.py shows the order: data, setup, init, loop (evaluate, save, next, step, log), finish.
"""
