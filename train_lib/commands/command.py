"""What the user asked for, as every verb receives it."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line that was read.

    Attributes:
        verb: a key of `verbs.VERBS`.
        config: with its overrides; None where the verb needs none and none was given.
        config_file: FILE or FILE:args of --config as it was given, '' without one.
        config_path: the file itself, as it was found; '' without one.
        flags: {name: text} of those in `Verb.flags` that were given.
        workdir: of --workdir, or None.
        words: those behind the verb, as in `models FILTER`.
        argv: the whole command line as it was given.
        began: time.perf_counter() from which on the time of the command counts.
    """

    verb: str
    config: ConfigDict | None
    config_file: str
    workdir: Path | None
    words: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    began: float = dataclasses.field(default_factory=time.perf_counter)
    config_path: str = ''
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
