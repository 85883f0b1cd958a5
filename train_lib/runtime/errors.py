"""The exceptions by which train_lib tells a user what to change."""

import errno
import os
import re

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
             errno.EIO, errno.ESTALE)


class ConfigError(ValueError):
    """A key, value or file that the user gave is wrong: exit code 2.

    The message is one sentence that names it, says what is wrong and what to do.
    """


class DivergedError(RuntimeError):
    """The training is no longer finite: exit code 1."""


class CompilerError(RuntimeError):
    """A compiler cannot make a program that the user is not to blame for: exit code 1."""


class AbsentError(RuntimeError):
    """The other processes of a run have not come: exit code 1, as the next start may find them."""


class CheckpointError(RuntimeError):
    """The saved state of a run cannot be used: exit code 1, and never a fresh start."""


def disk_trouble(error: Exception) -> str:
    """One sentence on what a disk refused, from an OSError or from the error that Orbax turns it
    into; '' if the error is about something else."""
    if isinstance(error, OSError):
        paths = [error.filename, error.filename2]
    else:
        paths = re.findall(r'local file "([^"]+)"', str(error))
    reason = next((os.strerror(code) for code in _codes(error) if code in _OF_DISKS), '')
    path = next((str(path) for path in paths if path), '')
    return reason and (f'{path or "A file"} cannot be written or read ({reason}): check the disk '
                       f'and run the same command again; a run resumes from its last checkpoint.')


def no_room(error: Exception) -> bool:
    """Whether the disk is full or write-protected, so that nothing else can be written there."""
    return any(code in _NO_ROOM for code in _codes(error))


def _codes(error: Exception) -> list[int | None]:
    if isinstance(error, OSError):
        return [error.errno]
    return [code for code in _OF_DISKS if os.strerror(code) in str(error)]
