"""Which published weights a run and its ancestors started from, and their licences."""

from collections.abc import Mapping
from pathlib import Path

from models.licences import licence
from models.tags import exact_tag
from models.weight_files import FILES
from train_lib.predictions.run_folders import config_json
from train_lib.run_dir.ancestors import ancestry_of
from train_lib.run_dir.starting_weights import of_run
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
    # Recorded by the run itself: also of ancestors that are gone, and of the members of a soup.
    for record in of_run(model.workdir):
        name, terms = str(record.get('weights')), record.get('license')
        if terms is not None and not any(f'`{name}`' in line for line in lines):
            lines.append(f'- they go back to the published weights `{name}`, licence: '
                         f'{_terms(terms)}; see {_HUB}{name}')
    return lines


def _terms(name: str) -> str:
    if not name:
        return 'not known to this project'
    found = licence(name)
    return f'{name} as timm 1.0.31 records it{f" ({found.note})" if found.special else ""}'


def _weights(config: Mapping) -> str:
    """What config.init says, in words."""
    init, name = config.get('init', {}), str(config.get('model', {}).get('name', ''))
    source = str(init.get('pretrained') or '')
    if init.get('from'):
        return 'the weights of another run'
    if not source:
        return 'random weights'
    tag = exact_tag(name, source)
    if tag:
        return (f'the published weights `{tag.repository}`, licence: {_terms(tag.license)}; see '
                f'{_HUB}{tag.repository}')
    if Path(source).suffix in FILES:
        return f'the file `{Path(source).name}`, whose licence is not known to this project'
    repository = source.removeprefix('hf-hub:').removeprefix('hf_hub:')
    return (f'the published weights `{repository}`, whose licence is not known to this project; '
            f'see {_HUB}{repository}')
