"""What the verbs of main.py do with data and models: train, predict, vote, study, report.

Each folder is one part of it. Imports run downwards, from commands to runtime; tests/test_house.py
has the order.
"""

import os
import typing

if typing.TYPE_CHECKING:
    from train_lib.serving.loaded_run import LoadedRun

__version__ = '0.1.0'


def load(workdir: 'str | os.PathLike[str]') -> 'LoadedRun':
    """A finished run, for a program of one's own:

        run = train_lib.load('runs/a')
        run.predict(['cat.jpg', 'dog.jpg'])  # a table: id, prediction, probability

    It needs only the files of the workdir, which may have been copied from another machine; the
    pictures of the training may be gone. Of a k-fold run it loads all folds, whose probabilities
    are averaged. See `LoadedRun` and docs/python.md.

    Args:
        workdir: of a run, or of one fold.

    Raises:
        ConfigError: there is no finished run, or it is of a kind that cannot be loaded.
        CheckpointError: a checkpoint is damaged.
    """
    # `import train_lib` stays cheap, and JAX is imported only after its platform was chosen.
    from train_lib.runtime.platform import choose_platform

    choose_platform()
    from train_lib.serving.loaded_run import load as load_run

    return load_run(workdir)
