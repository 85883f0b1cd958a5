"""A path where `main.py` takes a verb or nothing: what was likely meant by it."""

from collections.abc import Sequence
from pathlib import Path

from train_lib.commands.verbs import Verb
from train_lib.predictions.run_folders import folds_of
from train_lib.run_dir.overrides import shown

_TABLES = ('.csv', '.parquet')
_PACKED = '.array_record'
_FILES = (*_TABLES, _PACKED, '.zip', '.py', '.png', '.jpg', '.jpeg', '.webp')


def meant(words: Sequence[str], name: str, verb: Verb, spec: str | None) -> str:
    """The sentence that says how a path is given; '' if the first of the words is none.

    Args:
        words: those that the verb does not take.
        name, verb: of the command.
        spec: FILE or FILE:args of --config, or None.
    """
    word = words[0]
    path = Path(word)
    file = Path(word.partition(':')[0])
    if not (path.exists() or '/' in word or path.suffix.lower() in _FILES
            or file.suffix == '.py'):
        return ''
    if file.suffix == '.py':
        flag = f'--config={shown(word)}'
    elif name == 'predict' and path.is_dir() and not _is_run(path):
        flag = (f'--config.predict.source=data --config.data.source=folder '
                f'--config.data.folder={shown(word)}')
    elif name == 'submit':
        flag = _of_submit(words, path)
    elif verb.workdir or (_is_run(path) and not verb.votes):
        flag = f'--workdir={shown(word)}'
    else:
        config = spec or f'configs/{verb.example}'
        source = f'members={",".join(map(shown, words))}' if verb.votes else _source(path)
        flag = f'--config={config}{"," if ":" in config else ":"}{source}'
    return f'{shown(word)!r} is a path, which needs a flag: did you mean {flag}?'


def _of_submit(words: Sequence[str], path: Path) -> str:
    """The flag of submit that takes the first of the words, which is this path."""
    if path.suffix.lower() in _TABLES:
        return f'--sample={shown(words[0])}'
    if path.suffix.lower() == '.zip' or (path.is_dir() and not (_is_run(path) or folds_of(path))):
        return f'--images={shown(words[0])}'
    return f'--workdirs={",".join(map(shown, words))}'


def _is_run(path: Path) -> bool:
    return (path / 'config.json').exists()


def _source(path: Path) -> str:
    """The argument of a config that reads the pictures in a path."""
    ending = path.suffix.lower()
    if ending in _TABLES:
        return f'csv={shown(str(path))}'
    if ending == _PACKED:
        return f'packed={shown(str(path.parent))}'
    if path.is_dir() and any(path.glob(f'*{_PACKED}')):
        return f'packed={shown(str(path))}'
    if ending in _FILES and ending != '.zip':
        path = path.parent  # of a picture
    return f'folder={shown(str(path))}'
