"""Studies: arms x seeds x folds, each an ordinary run, shared by any number of worker processes.

A study receives a config, its file, a workdir, a command that starts a worker and a function that
runs one cell; it keeps a ledger that survives kills, and writes the tables and report.html.
"""
