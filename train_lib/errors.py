"""The exceptions by which training tells a user what to change."""

import errno
import os
import re

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
             errno.EIO, errno.ESTALE)


class ConfigError(ValueError):
    """A key, value or file that the user gave is at fault: exit code 2.

    The message is one sentence that names it, says what is wrong and what to do.
    """


class DivergedError(RuntimeError):
    """The training is no longer finite: exit code 1."""


class CheckpointError(RuntimeError):
    """The saved state of a run cannot be used: exit code 1, and never a fresh start."""


def disk_trouble(error: Exception) -> str:
    """One sentence on what a disk refused, from an OSError or what Orbax makes of it; '' if the
    error is about something else."""
    text = str(error)
    if isinstance(error, OSError):
        codes, paths = (error.errno,), (error.filename, error.filename2)
    else:
        codes = [code for code in _OF_DISKS if os.strerror(code) in text]
        paths = re.findall(r'local file "([^"]+)"', text)
    reason = next((os.strerror(code) for code in codes if code in _OF_DISKS), '')
    path = next((str(path) for path in paths if path), '')
    return reason and (f'{path or "A file"} cannot be written or read ({reason}): see to the disk '
                       f'and give the same command again; a run goes on from its last checkpoint.')
