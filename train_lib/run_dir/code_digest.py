"""Which code made a run: one digest of the Python files that decide its numbers."""

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ('main.py', 'models', 'input_pipeline', 'train_lib')


@functools.cache
def code_digest(root: Path = ROOT) -> str:
    """SHA-256 in hex of main.py and of every .py file in the three packages: names and bytes.

    The first result is kept: files that are edited while a process runs do not change what it runs,
    so call it early. Configs are left out, because a run stores its resolved config.
    """
    files = [path for part in PARTS
             for path in ([root / part] if part.endswith('.py') else (root / part).rglob('*.py'))]
    found = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        data = path.read_bytes()
        found.update(f'{name}\0{len(data)}\0'.encode('utf-8', 'surrogateescape'))
        found.update(data)
    return found.hexdigest()
