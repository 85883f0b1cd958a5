"""README.md of an export: what a model was trained on, how well it does, and what is not known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from train_lib.serving.trained_models import TrainedModel

NAME = 'README.md'


def card(workdir: Path, trained: Sequence[TrainedModel], form: str, files: Mapping[str, str]
         ) -> str:
    """The model card, Markdown.

    Args:
        workdir: of the whole run.
        trained: its models, one or one per fold.
        form: the format of the export.
        files: {path in the export: one line of what it is}.
    """
    first = trained[0]
    lines = [f'# {first.config.model.name}', '', f'Format: {form}.', '', '| file | what it is |',
             '|---|---|', *(f'| `{name}` | {about} |' for name, about in files.items())]
    if len(trained) > 1:
        lines += ['', f'The run has {len(trained)} folds, each of which is a model: the answer is '
                      f'the mean of their probabilities.']
    return '\n'.join(lines) + '\n'
