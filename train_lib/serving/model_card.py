"""README.md of an export: what a model was trained on, how well it does, and what is not known.

It goes where the model goes, so it holds no path of the machine that trained it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

import train_lib
from input_pipeline.errors import counted
from train_lib.predictions.class_order import medians_of
from train_lib.predictions.run_folders import splits_of
from train_lib.reporting.about import changed_settings
from train_lib.reporting.inputs import read_json
from train_lib.reporting.page import r3, whole
from train_lib.run_dir.seen_rows import marks
from train_lib.serving import exported_answers
from train_lib.serving.card_scores import SET_KEYS, Score, scores_of_run
from train_lib.serving.card_weights import origin
from train_lib.serving.trained_models import TrainedModel

NAME = 'README.md'
_SHOWN_CLASSES = 20
# Settings that only name places on the machine that trained.
_PLACES = ('data.folder', 'data.csv', 'data.images', 'data.packed', 'data.tfds_dir',
           'data.decisions', 'init.from', 'init.resume_from', 'init.pretrained', 'init.folder',
           'split.file')


def card(workdir: Path, trained: Sequence[TrainedModel], files: Mapping[str, str],
         loading: str = '') -> str:
    """The model card, Markdown.

    Args:
        workdir: of the whole run.
        trained: its models, one or one per fold.
        files: {file name: one line of what it is}; the same for each fold.
        loading: how the files are loaded, Markdown.
    """
    config, result = (read_json(workdir / name)[0] for name in ('config.json', 'result.json'))
    first = trained[0]
    name = first.config.model.name
    sections = [
        (f'{name}: {_counted(first)}', _about(workdir, trained)),
        ('Files', _files(files, trained, loading)),
        ('Classes', _classes(first)),
        ('Scores', [*_scores(scores_of_run(workdir, trained, result)),
                    *(f'\nNote: {mark}' for mark in marks(result))]),
        ('Data', _data(trained, config, result)),
        ('Preparation of pictures', _preparation(first)),
        ('Weights it started from', origin(first)),
        ('Settings', _settings(config)),
        ('Versions', _versions(trained, result)),
        ('What is not known', _limits(trained))]
    parts = [f'{"#" if not number else "##"} {title}\n\n' + '\n'.join(lines)
             for number, (title, lines) in enumerate(sections)]
    return '\n\n'.join(parts) + '\n'


def cell(text: object) -> str:
    """A text inside a table or a line of Markdown, where it means itself."""
    text = ' '.join(str(text).split())
    return re.sub(r'([|\\`*_<>\[\]])', r'\\\1', text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}',
            *(f'| {" | ".join(row)} |' for row in rows)]


def _files(files: Mapping[str, str], trained: Sequence[TrainedModel], loading: str) -> list[str]:
    several = len(trained) > 1
    lines = _table(('file', 'what it is'), [(f'`{path}`', about) for path, about in files.items()])
    if several:
        folders = ', '.join(f'`{one.workdir.name}/`' for one in trained)
        lines = [f'In each of the folders {folders}:', '', *lines]
    return [*lines, *(['', loading] if loading else []), '', *_probabilities(trained[0], several)]


def _probabilities(model: TrainedModel, several: bool) -> list[str]:
    """How logits become answers."""
    lines = []
    if len(model.multi_label) < len(model.classes):
        rest = [f'`{cell(head)}`' for head in model.classes if head not in model.multi_label]
        lines.append(f'Probabilities{" of " + ", ".join(rest) if model.multi_label else ""} are '
                     f'the softmax of the logits.')
    for head in model.multi_label:
        lines.append(
            f'The head `{cell(head)}` has several labels per picture: probabilities are the '
            f'sigmoid of the logits, and a label is answered where its own is at least its '
            f'threshold in `{exported_answers.NAME}`.'
            + (f' The thresholds of a folder are those of its fold alone; `'
               f'{exported_answers.NAME}` beside the folders has those of their mean.'
               if several else ''))
    for head in medians_of(model.config.to_dict(), tuple(model.classes)):
        lines.append(f'The classes of `{cell(head)}` have an order, and the run answers the median '
                     f'of their probabilities: the first class that, with all before it, has half '
                     f'of them.')
    return lines


def _counted(model: TrainedModel) -> str:
    counts = {head: len(names) for head, names in model.classes.items()}
    if len(counts) == 1:
        return f'{next(iter(counts.values())):,} classes'
    return ', '.join(f'{count:,} classes of {head}' for head, count in counts.items())


def _about(workdir: Path, trained: Sequence[TrainedModel]) -> list[str]:
    first, (height, width) = trained[0], trained[0].preprocess.frame
    lines = [f'A classifier of pictures, `{first.config.model.name}`, for {height} x {width} '
             f'pixels and {counted(first.preprocess.channels, "channel")}, computed in '
             f'{first.config.precision}. It was trained in the run `{workdir.absolute().name}`.']
    if len(trained) > 1:
        lines += ['', f'The run has {len(trained)} folds, each of which is a model in a folder of '
                      f'its own. The answer of the run is the mean of their probabilities'
                      + _mean_answer(first)]
    if any(offset.any() for offset in first.offsets.values()):
        lines += ['', f'Its logits are adjusted for the shares of the classes in training, with '
                      f'tau {first.config.eval.adjust_tau:g}; so are those of the scores below.']
    return lines


def _mean_answer(model: TrainedModel) -> str:
    medians = medians_of(model.config.to_dict(), tuple(model.classes))
    one = ' (the softmax of the logits); the class is that with the largest mean' + (
        f', of {", ".join(map(cell, medians))} their median' if medians else '')
    several = (f' (the sigmoid of the logits); the labels are those whose mean is at least their '
               f'threshold in `{exported_answers.NAME}`')
    if not model.multi_label:
        return f'{one}.'
    if len(model.multi_label) == len(model.classes):
        return f'{several}.'
    return f'{one}; of {", ".join(map(cell, model.multi_label))}{several}.'


def _classes(model: TrainedModel) -> list[str]:
    lines = []
    for head, names in model.classes.items():
        shown = ', '.join(cell(name) for name in names[:_SHOWN_CLASSES])
        rest = len(names) - _SHOWN_CLASSES
        title = f'{cell(head)}: ' if len(model.classes) > 1 else ''
        lines.append(f'- {title}{len(names):,}: {shown}'
                     f'{f" and {rest:,} more" if rest > 0 else ""}')
    return lines


def _scores(found: Sequence[Score]) -> list[str]:
    if not found:
        return ['None: the run has no labelled pictures that it did not train on.']

    def with_interval(value, interval):
        if interval is None:
            return r3(value)
        return f'{r3(value)} ({r3(interval[0])} to {r3(interval[1])})'

    several = any(score.head for score in found)
    head = ('pictures', *(('head',) if several else ()), 'n', 'accuracy', 'F1', 'NLL', 'ECE')
    lines = _table(head, [
        (score.split, *((cell(score.head),) if several else ()), whole(score.n),
         with_interval(score.accuracy, score.accuracy_interval),
         with_interval(score.f1, score.f1_interval), r3(score.nll), r3(score.ece))
        for score in found])
    groups = max(score.groups for score in found)
    unit = 'groups of pictures (persons, drawers, duplicates)' if groups else 'pictures'
    lines += ['', f'In brackets 95 % intervals for new {unit} of the same kind. F1 is the mean '
                  f'over classes, NLL is in nats, ECE is the expected calibration error.']
    return lines + _set_scores([score for score in found if score.sets], several)


def _set_scores(found: Sequence[Score], several: bool) -> list[str]:
    """What else is known of multi-label heads."""
    if not found:
        return []
    rows = [(score.split, *((cell(score.head),) if several else ()),
             *(r3(score.sets.get(key)) for key in SET_KEYS)) for score in found]
    return ['', 'Where pictures have several labels, accuracy is the share of pictures whose whole '
                'set is right, and what is above is at a threshold of 0.5. Fitted '
                'thresholds were tried on pictures that they were not fitted on:', '',
            *_table(('pictures', *(('head',) if several else ()), 'mAP', 'micro F1',
                     'accuracy, fitted', 'F1, fitted', 'micro F1, fitted'), rows)]


def _data(trained: Sequence[TrainedModel], config: Mapping, result: Mapping) -> list[str]:
    first, splits = trained[0], splits_of(trained[0].workdir)
    data, split = first.config.data, first.config.split
    source = f'`{data.source}`{f" ({cell(data.tfds)})" if data.source == "tfds" else ""}'
    digest = result.get('data_digest') or config.get('data_digest') or 'not known'
    kind = f'`{split.kind}`'
    if split.kind == 'kfold':
        kind += f' of {split.folds} folds, {len(trained)} of them here'
    if splits.roles:
        kind += ('; a group of pictures is never on two sides' if splits.groups else
                 '; pictures are split one by one')
    lines = [f'- Source: {source}', f'- Digest of ids, labels, groups and classes: `{digest}`',
             f'- Split: {kind}']
    counts = Counter(splits.roles.values())
    rows = []
    for name in ('train', 'val', 'test'):
        ids = [one for one, role in splits.roles.items() if role == name]
        groups = {splits.groups[one] for one in ids if one in splits.groups}
        if counts[name]:
            rows.append((name, whole(counts[name]), whole(len(groups)) if groups else '–'))
    if not rows:
        return lines
    title = f'split of {first.workdir.name}' if len(trained) > 1 else 'split'
    lines += ['', *_table((title, 'pictures', 'groups'), rows)]
    for head in first.classes:
        sizes = _sizes(splits.training_labels(head), first, head)
        if sizes:
            of_head = f' of {cell(head)}' if len(first.classes) > 1 else ''
            lines += ['', f'Training pictures per class{of_head}: {min(sizes.values()):,} to '
                          f'{max(sizes.values()):,}.']
    return lines


def _sizes(labels: Sequence[str], model: TrainedModel, head: str) -> Counter[str]:
    """{class: training pictures}; {} where the texts of several labels cannot be told apart."""
    if head not in model.multi_label:
        return Counter(label for label in labels if label)
    separator = model.config.data.label_separator
    names = [name for text in labels if text and text != separator
             for name in text.split(separator)]
    return Counter(names) if set(names) <= set(model.classes[head]) else Counter()


def _preparation(model: TrainedModel) -> list[str]:
    spec, (height, width) = model.preprocess, model.preprocess.frame
    numbers = lambda values: ', '.join(f'{value:.6g}' for value in values)
    how = {'squash': 'the aspect ratio changes',
           'pad': 'the aspect ratio stays, and the median colour of the border fills the rest',
           'crop': 'the aspect ratio stays, and the centre is cut out'}
    channels = {1: 'grey', 3: 'red, green, blue', 4: 'red, green, blue, transparency'}
    packed = ['- The pictures came from `main.py pack`. What it did to them before (size, faces, '
              'backgrounds) is not in this export.'] if model.config.data.source == 'packed' else []
    return [f'- {height} x {width} pixels, {channels[spec.channels]}',
            f'- resized by `{spec.resize}` ({how[spec.resize]}), `{spec.interpolation}`, '
            f'share kept {spec.crop_pct:g}',
            f'- (x / 255 - mean) / std with mean {numbers(spec.mean)} and std '
            f'{numbers(spec.std)}', *packed]


def _settings(config: Mapping) -> list[str]:
    changed = changed_settings(dict(config))
    if changed is None:
        return ['The run did not write down which settings differ from the defaults.']
    rows = [(f'`{key}`', cell(_without_places(value)), cell(_without_places(default)))
            for key, value, default in changed if key not in _PLACES]
    if not rows:
        return ['All are the defaults.']
    return ['Those that differ from the defaults:', '', *_table(('key', 'value', 'default'), rows)]


def _without_places(text: str) -> str:
    """Absolute paths by their last part."""
    if re.match(r'[/~]', text):
        return Path(text).name
    return re.sub(r'"[/~][^"]*"', lambda found: f'"{Path(found[0][1:-1]).name}"', text)


def _versions(trained: Sequence[TrainedModel], result: Mapping) -> list[str]:
    first = (result.get('folds') or [{}])[0] if len(trained) > 1 else {}
    known = {**first, **result}
    versions = known.get('versions') or {}
    rows = [('this project', known.get('version', '')), ('digest of its code',
                                                         known.get('code_digest', '')),
            *versions.items()]
    lines = [f'- {cell(name)}: {cell(value)}' for name, value in rows if value]
    steps = ', '.join(f'{one.workdir.name} {one.step:,}' if len(trained) > 1 else f'{one.step:,}'
                      for one in trained)
    lines += [f'- step of the checkpoint: {steps}',
              *(f'- digest of the checkpoint{f" of {one.workdir.name}" * (len(trained) > 1)}: '
                f'`{one.digest}`' for one in trained),
              f'- exported by version {train_lib.__version__} with jax {jax.__version__}']
    return lines


def _answer_limits(model: TrainedModel) -> list[str]:
    of = [head for head in model.classes if head not in model.multi_label]
    lines = [f'- {cell(head)}: what a picture shows beside these labels is not answered.'
             for head in model.multi_label]
    if of:
        heads = f'{", ".join(map(cell, of))}: the' if model.multi_label else 'The'
        lines.append(f'- {heads} model answers with one of its classes for every picture, also for '
                     f'a picture that shows none of them.')
    return lines


def _limits(trained: Sequence[TrainedModel]) -> list[str]:
    lines = [
        '- The scores are about the data above. Nothing is known about pictures of other origin '
        '(cameras, people, places, ways of drawing).',
        *_answer_limits(trained[0]),
        '- ECE above says how far probabilities were from the share of right answers; nothing else '
        'calibrates them.' if trained[0].multi_label else
        '- A probability is the softmax of the logits. ECE above says how far it was from the '
        'share of right answers; nothing else calibrates it.',
        '- Licences and rights of the training pictures are not known to this project.']
    if len(trained) > 1:
        lines.append('- The out-of-fold scores are those of single folds. What the mean over the '
                     'folds reaches was not measured here.')
    return lines
