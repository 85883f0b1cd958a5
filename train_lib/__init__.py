"""What the verbs of main.py do with data and models: train, predict, vote, study, report.

Each folder is one part of it. Imports run downwards, from commands to runtime; tests/test_house.py
has the order.
"""

__version__ = '0.1.0'
