"""A thread that keeps a lease alive while its cell runs."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable

from train_lib.studies.ledger import LIMIT, Lease

BEAT = 5.0  # seconds between two touches of a lease


class Heartbeat:
    """In the block, touches a lease, and ends the process if the lease is lost."""

    def __init__(self, lease: Lease, every_second: Callable[[], None] = lambda: None):
        """
        Args:
            lease: of this process.
            every_second: called about once per second, from the thread.
        """
        self._lease, self._every_second = lease, every_second
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        waited = 0.0
        while not self._over.wait(1.0):
            self._every_second()
            waited += 1.0
            with contextlib.suppress(OSError):  # a shared folder may be out of reach for a while
                if not self._lease.is_held():
                    print(f'{self._lease.folder}: another process has taken this cell, because '
                          f'this one did not touch its lease for {LIMIT:g} s.', file=sys.stderr,
                          flush=True)
                    os._exit(1)
                if waited >= BEAT:
                    self._lease.touch()
                    waited = 0.0
