"""Which process a lease belongs to, and whether it is alive: machine, pid and start time."""

import contextlib
import os
import socket
from pathlib import Path


def machine() -> str:
    """This machine, boot and pid namespace; a pid is only unique within these."""
    parts = [socket.gethostname()]
    for read in (lambda: Path('/proc/sys/kernel/random/boot_id').read_text().strip(),
                 lambda: os.readlink('/proc/self/ns/pid')):
        with contextlib.suppress(OSError):  # not Linux
            parts.append(read())
    return ' '.join(parts)


def started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks.

    Returns:
        None if the process is dead. '' if it is alive and the kernel does not say since when.
    """
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        state, threads, start = fields[0], int(fields[17]), fields[19]
        # The main thread is a zombie before the last thread of a killed process has closed its
        # files; until then it holds the lock of the run that it was working on.
        return None if state in 'ZX' and threads <= 1 else start
    except FileNotFoundError:
        if Path('/proc/self/stat').exists():
            return None
    except ProcessLookupError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ''
