"""Which published weights a run and its ancestors started from, and their licences."""

from collections.abc import Mapping
from pathlib import Path

from models.tags import Tag, find_tag
from models.weight_files import FILES
from train_lib.predictions.run_folders import config_json
from train_lib.run_dir.ancestors import ancestry_of
from train_lib.runtime.errors import ConfigError
from train_lib.serving.trained_models import TrainedModel

_HUB = 'https://huggingface.co/'


def origin(model: TrainedModel) -> list[str]:
    """Lines of Markdown: the run, then its ancestors, the nearest first."""
    config = config_json(model.workdir) or model.config.to_dict()
    lines = [f'- {_weights(config)}']
    for run in ancestry_of(model.workdir).runs:
        folder = Path(str(run.get('workdir', '')))
        digest = str(run.get('checkpoint') or 'not known')
        try:
            theirs = config_json(folder)
        except ConfigError:
            theirs = {}
        about = _weights(theirs) if theirs else ('what it started from is not known, because the '
                                                 'run is no longer there')
        lines.append(f'- from the run `{folder.name}` (digest of its checkpoint: `{digest}`): '
                     f'{about}')
    return lines


def _weights(config: Mapping) -> str:
    """What config.init says, in words."""
    init, name = config.get('init', {}), str(config.get('model', {}).get('name', ''))
    source = str(init.get('pretrained') or '')
    if init.get('from'):
        return 'the weights of another run'
    if not source:
        return 'random weights'
    tag = _exact_tag(name, source)
    if tag:
        licence = f'{tag.license} as timm 1.0.31 records it' if tag.license else \
            'not known to this project'
        return (f'the published weights `{tag.repository}`, licence: {licence}; see '
                f'{_HUB}{tag.repository}')
    if Path(source).suffix in FILES:
        return f'the file `{Path(source).name}`, whose licence is not known to this project'
    repository = source.removeprefix('hf-hub:').removeprefix('hf_hub:')
    return (f'the published weights `{repository}`, whose licence is not known to this project; '
            f'see {_HUB}{repository}')


def _exact_tag(model: str, source: str) -> Tag | None:
    """The tag that is meant. A file under any other name may hold anything."""
    tag = find_tag(model, source)
    if tag and Path(source).suffix in FILES and \
            Path(source).stem not in (tag.tag, f'{tag.model}.{tag.tag}'):
        return None
    return tag
