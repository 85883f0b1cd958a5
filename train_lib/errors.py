"""The exceptions by which training tells a user what to change."""


class ConfigError(ValueError):
    """A key, value or file that the user gave is at fault: exit code 2.

    The message is one sentence that names it, says what is wrong and what to do.
    """


class DivergedError(RuntimeError):
    """The training is no longer finite: exit code 1."""


class CheckpointError(RuntimeError):
    """The saved state of a run cannot be used: exit code 1, and never a fresh start."""
