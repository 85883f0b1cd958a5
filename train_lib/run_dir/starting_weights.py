"""The published weights that a run goes back to: its own, and those of the runs before it.

config.json records them under `pretrained`, a list of dict(weights, place, sha256, license), one
for each. `license` is as timm records it: '' if it states none, None if it is not known, as of a
file.
For an older run they are derived from config.init and from the folders that it names.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from train_lib.run_dir import ancestors, workdirs

Record = dict[str, Any]


def of_start(source: Path | None, own: Record) -> list[Record]:
    """Of a run that starts now from the weights in `own`, or from the run `source`."""
    if source is not None:
        return of_run(source)
    return [own] if own else []


def of_run(workdir: Path, seen: Collection[Path] = ()) -> list[Record]:
    """Of a run, of one of its folds, or of a whole k-fold run; [] if nothing is known.

    Raises:
        ConfigError: a config.json is damaged.
    """
    if ancestors.is_kfold(workdir):
        return together(of_run(fold, seen) for fold in sorted(workdir.glob('fold_*')))
    if not (workdir / 'config.json').exists() or workdir.resolve() in seen:
        return []
    recorded = workdirs.start_facts(workdir).get('pretrained')
    if isinstance(recorded, list):
        return [one for one in recorded if isinstance(one, dict)]
    config = workdirs.saved_config(workdir)
    pretrained, source = config.init.pretrained, config.init['from']
    if source:
        fold = Path(source) / f'fold_{config.split.fold}'
        return of_run(fold if fold.is_dir() else Path(source), {*seen, workdir.resolve()})
    return [_derived(config.model.name, pretrained)] if pretrained else []


def of_several(workdirs_: Sequence[Path]) -> list[Record]:
    """Of a run that is made of others, such as a soup."""
    return together(of_run(workdir) for workdir in workdirs_)


def together(parts: Iterable[Sequence[Record]]) -> list[Record]:
    """Each of them once, in their order."""
    found: list[Record] = []
    for part in parts:
        found += [one for one in part if one not in found]
    return found


def _derived(model: str, source: str) -> Record:
    from models.tags import exact_tag  # loads JAX

    tag = exact_tag(model, source)
    return dict(weights=tag.repository if tag else source, place='', sha256='',
                license=tag.license if tag else None)
