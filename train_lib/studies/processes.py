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
        return None if fields[0] in 'ZX' else fields[19]
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
