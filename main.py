"""Trains, evaluates and reports: python main.py [VERB] --config=FILE [--config.key=value ...]."""

import dataclasses
import sys

from train_lib.runtime.cpu_program import set_up_cpu
from train_lib.runtime.platform import choose_platform

choose_platform()  # before anything imports JAX
set_up_cpu()

from input_pipeline.errors import DataError, WorkerError  # noqa: E402
from models.errors import ModelError  # noqa: E402
from train_lib.commands import command_line  # noqa: E402
from train_lib.commands.verbs import VERBS  # noqa: E402
from train_lib.run_dir.goodput import process_start  # noqa: E402
from train_lib.runtime import distributed  # noqa: E402
from train_lib.runtime.compile_cache import use_compile_cache  # noqa: E402
from train_lib.runtime.errors import (  # noqa: E402
    AbsentError,
    CheckpointError,
    CompilerError,
    ConfigError,
    disk_trouble,
)
from train_lib.runtime.progress import setup_logging  # noqa: E402
from train_lib.runtime.signals import AT_ONCE, twice_is_at_once  # noqa: E402


def main(argv: list[str], began: float | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 2 user error, 75 stopped, 1 other.

    `began`: time.perf_counter() from which on its time counts (None: now).
    """
    setup_logging()
    try:
        command = command_line.parse(argv)
        if began is not None:
            command = dataclasses.replace(command, began=began)
        use_compile_cache(command.config is None or command.config.compile_cache)
        with twice_is_at_once():
            return VERBS[command.verb].load()(command)
    except (ConfigError, DataError, ModelError) as error:
        print(f'main.py: {error}', file=sys.stderr)
        return 2
    except (AbsentError, CheckpointError, CompilerError, WorkerError) as error:
        print(f'main.py: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('main.py: stopped at once, without saving.', file=sys.stderr)
        return AT_ONCE
    except Exception as error:
        sentence = disk_trouble(error)
        if not sentence:
            raise
        print(f'main.py: {sentence}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    distributed.leave(lambda: main(sys.argv[1:], process_start()))
