"""The verbs of main.py, one thin file each, and the command line that chooses between them.

A verb reads its config, calls what the rooms below provide, and says what it wrote; verbs.py lists
all of them.
"""
