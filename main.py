"""Trains, evaluates and reports: python main.py [VERB] --config=FILE [--config.key=value ...]."""

import sys

from train_lib.platform import choose_platform

choose_platform()  # before anything imports JAX

from input_pipeline.errors import DataError  # noqa: E402
from models.errors import ModelError  # noqa: E402
from train_lib import command_line, experiment, model_list, packed  # noqa: E402
from train_lib.errors import CheckpointError, ConfigError  # noqa: E402
from train_lib.progress import setup_logging  # noqa: E402

RUNNERS = {
    'train': experiment.train,
    'report': experiment.report,
    'pack': packed.pack_command,
    'models': model_list.list_command,
}


def main(argv: list[str]) -> int:
    """Runs one verb and returns the exit code: 0 done, 2 user error, 75 stopped, 1 other."""
    setup_logging()
    try:
        command = command_line.parse(argv)
        return RUNNERS[command.verb](command)
    except (ConfigError, DataError, ModelError) as error:
        print(f'main.py: {error}', file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f'main.py: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
