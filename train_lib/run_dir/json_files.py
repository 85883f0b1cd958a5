"""JSON files that may be damaged. `input_pipeline.atomic_files` writes them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError or ValueError: there is no such file, or it does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError('it does not hold a JSON object')
    return content


def json_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, in hex, to be stored in its own key 'sha256', which is left out."""
    others = {key: value for key, value in content.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
