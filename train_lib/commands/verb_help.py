"""What `main.py help`, `main.py help VERB` and `main.py VERB --help` print, in 80 columns.

A verb needs no entry in HELPS: without one, its help is made from its line in VERBS and from the
section of the config that has its name.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from train_lib.commands.knob_comments import sections
from train_lib.commands.verbs import VERBS, Verb

_CONFIG, _WORKDIR, _KEYS = ('--config=FILE[:key=value,...]', '--workdir=DIR',
                            '[--config.key=value ...]')
USAGE = f'python main.py [VERB] {_CONFIG} [{_WORKDIR}] {_KEYS}'
WIDTH = 80
SHOWN = 3  # knobs per verb
_HOME = Path(__file__).parents[2]
_KNOBS = ('configs/common.py', 'configs/sections/flat_minima.py',
          'configs/sections/without_labels.py', 'configs/sections/devices.py',
          'configs/sections/other_verbs.py')
_KNOBS_OF_VOTES = ('configs/vote/common.py',)


@dataclasses.dataclass(frozen=True)
class Help:
    """The help of a verb besides what `Verb` knows.

    Attributes:
        sentence: what it does.
        example: a command, in lines.
        knobs: the most used keys of the config; their comments are those of the config files.
        page: of the manual, in docs/.
        word: how its usage calls the words that may follow the verb.
        needed: flags of its own that it cannot do without.
    """

    sentence: str
    example: Sequence[str]
    knobs: Sequence[str]
    page: str
    word: str = 'WORD'
    needed: Sequence[str] = ()


HELPS = {
    'train': Help(
        'Trains a model, scores it on pictures that it has not seen, and writes report.html. The '
        'same command with the same --workdir goes on where a run was stopped.',
        ['python main.py --config=configs/sketch_vit.py:folder=PATH --workdir=runs/mine'],
        ('duration', 'schedule.lr', 'split.kind'), 'training.md'),
    'report': Help(
        'Writes report.html of a finished run again, from the files in its workdir.',
        ['python main.py report --workdir=runs/mine'],
        ('report.errors', 'data.folder', 'data.images'), 'workdir.md'),
    'predict': Help(
        'Writes the logits of a trained run, or of every fold of one, for rows of its own data or '
        'for other pictures, so that `vote` can use them.',
        ['python main.py predict --workdir=runs/mine --config.predict.source=data \\',
         '    --config.data.source=folder --config.data.folder=PATH'],
        ('predict.source', 'predict.views', 'predict.labelled'), 'voting.md'),
    'vote': Help(
        'Lets the folds of a run, and several runs, vote: scores with intervals, submission.csv '
        'and report.html.',
        ['python main.py vote --config=configs/vote/digits.py:members=runs/a,runs/b \\',
         '    --workdir=runs/vote'],
        ('rule', 'source', 'sample'), 'voting.md'),
    'submit': Help(
        'Lets trained runs predict the pictures that a sample submission asks for, lets their '
        'folds and then the runs vote, and writes submission.csv with the columns of the sample.',
        ["python main.py submit --workdirs='runs/a*' --sample=sample_submission.csv \\",
         '    --images=PATH --out=runs/submission'],
        ('views', 'rule', 'columns'), 'competition.md', needed=('workdirs', 'sample', 'images')),
    'pseudo': Help(
        'Lets trained runs label pictures that have no labels, with calibrated confidence, and '
        'writes the surest labels to a file that config.data.extra gives to other runs. Fold k of '
        'a run labels for fold k of a student, so that nothing leaks into its scores.',
        ["python main.py pseudo --members=runs/first --images=UNLABELLED \\",
         '    --threshold=0.8 --per-class=50 --out=pseudo.csv'],
        ('rule', 'views', 'temperature'), 'few-labels.md', needed=('members', 'images', 'out')),
    'explore': Help(
        'Looks at a data set: explore.html has counts, sizes, suspicious pictures and copies.',
        ['python main.py explore --config=configs/sketch_vit.py:folder=PATH \\',
         '    --workdir=runs/look'],
        ('explore.beside', 'data.class_depth', 'data.group_regex'), 'data.md'),
    'curate': Help(
        'Finds copies, wrong labels, photographs and bad pictures, and writes decisions.csv, which '
        'you may correct and a run obeys (config.data.decisions). No picture is touched.',
        ['python main.py curate --config=configs/sketch_vit.py:folder=PATH \\',
         '    --workdir=runs/clean'],
        ('curate.detectors', 'curate.quality_drop', 'curate.labels.predictions'), 'data.md'),
    'features': Help(
        'Writes the features of every picture, by the backbone of a trained run or of config.model '
        'with the weights of config.init, to a Parquet file; and scores them by nearest neighbours '
        'and a logistic regression.',
        ['python main.py features --config=configs/sketch_vit.py:folder=PATH \\',
         '    --workdir=runs/mine --out=features.parquet'],
        ('features.evaluate', 'features.dtype', 'init.pretrained'), 'python.md', needed=('out',)),
    'pack': Help(
        'Packs a data set into a few files, which are read faster than many small ones, and '
        'verifies them.',
        ['python main.py pack --config=configs/mask_cnn.py:folder=PATH \\',
         '    --config.pack.folder=PACKED'],
        ('pack.folder', 'pack.size', 'pack.quality'), 'data.md'),
    'lr_find': Help(
        'Trains briefly while the learning rate grows, draws the loss, and suggests values of '
        'config.schedule.lr.',
        ['python main.py lr_find --config=configs/sketch_vit.py:folder=PATH'],
        ('lr_find.low', 'lr_find.high', 'lr_find.steps'), 'training.md'),
    'study': Help(
        'Trains every arm of a study with every seed and fold, and compares the arms in pairs: '
        'tables with intervals, and report.html. The same command resumes it.',
        ['python main.py study --config=configs/studies/digits.py \\',
         '    --workdir=runs/digits --workers=2'],
        ('study.seeds', 'study.metric', 'study.baseline'), 'studies.md'),
    'plan': Help(
        'Compiles the training step for TPUs or GPUs that need not be here and says what it takes '
        'of their memory, what they exchange, its FLOPs, and whether it fits. No weight is made '
        'and no picture is read.',
        ['python main.py plan --config=configs/sketch_vit.py \\',
         '    --config.plan.target=v5e:4x4 --config.plan.meshes=auto'],
        ('plan.target', 'plan.meshes', 'plan.margin'), 'scaling.md'),
    'export': Help(
        'Writes a trained run for other programs: as one program for CPU, CUDA and TPU '
        '(stablehlo), with the names of timm, or as ONNX; with a model card.',
        ['python main.py export --workdir=runs/mine --format=stablehlo'],
        (), 'exporting.md', needed=('format',)),
    'compare': Help(
        'Puts runs beside each other: settings that differ, scores with intervals, paired '
        'differences, curves and time, in the terminal, as a page and as CSV.',
        ['python main.py compare runs/*', 'python main.py compare runs/a runs/b --against=runs/b'],
        (), 'studies.md', word='WORKDIR'),
    'models': Help(
        'Lists the models with their parameters, FLOPs and published weights.',
        ["python main.py models 'resnet*'"],
        ('model.name', 'init.pretrained', 'image.size'), 'models.md', word='FILTER'),
}


def general() -> str:
    """The usage, and every verb in a line."""
    width = max(map(len, VERBS)) + 2
    verbs = '\n'.join(f'  {name:{width}}{verb.help}' for name, verb in VERBS.items())
    return '\n'.join([
        'Trains, evaluates and reports on image classification.', '', 'Usage:',
        *_usage_lines('python main.py [VERB]', [_CONFIG, f'[{_WORKDIR}]', _KEYS]), '',
        'Verbs:', verbs, '',
        *_wrapped('`python main.py help VERB` says more of a verb, and docs/config.md lists every '
                  'key of the config. An experiment is a file in configs/, e.g. '
                  '--config=configs/sketch_vit.py; what it takes after the colon, such as '
                  'folder=PATH, is said at its top.')])


def of_verb(name: str) -> str:
    """The help of one verb: what it does, its usage, an example, its most used knobs, and its page
    of the manual."""
    verb = VERBS[name]
    known = HELPS.get(name) or _made(name, verb)
    lines = [*_wrapped(known.sentence), '', 'Usage:',
             *_usage_lines(f'python main.py {name}', _parts(verb, known))]
    if verb.flags:
        lines += ['', 'Flags of this verb:', *(
            line for flag, what in verb.flags.items()
            for line in _wrapped(f'--{flag}  {what}', '  ', '      '))]
    lines += ['', 'Example:', *(f'  {line}' for line in known.example)]
    comments = knobs(verb)
    shown = [(key, *comments[key]) for key in known.knobs if key in comments]
    if shown:
        lines += ['', 'Most used keys of the config:']
        for key, default, comment in shown:
            lines += _wrapped(f'--config.{key}  (default: {default})', '  ', '      ')
            lines += _wrapped(comment, '      ')
    page = known.page
    return '\n'.join([*lines, '', f'Manual: docs/{page}; all keys: docs/config.md.'])


def knobs(verb: Verb) -> dict[str, tuple[str, str]]:
    """{key: (default as it is written, comment)} of the config of a verb."""
    found = {}
    for file in _KNOBS_OF_VOTES if verb.votes else _KNOBS:
        for section in sections(_HOME / file):
            found |= {key: (default, comment) for key, default, comment in section.knobs}
    return found


def _made(name: str, verb: Verb) -> Help:
    """The help of a verb without an entry in HELPS."""
    example = [f'python main.py {name}']
    if verb.config == 'required':
        example.append(f'--config=configs/{verb.example}')
    if verb.workdir:
        example.append('--workdir=runs/mine')
    own = [key for key in knobs(verb) if key.startswith(f'{name}.')]
    return Help(f'{verb.help[:1].upper()}{verb.help[1:].rstrip(".")}.',
                [' '.join(example)], [*verb.keys.values(), *own][:SHOWN], 'config.md')


def _parts(verb: Verb, known: Help) -> list[str]:
    """What follows the verb in its usage."""
    words = {0: [], 1: [f'[{known.word}]']}.get(verb.words, [f'[{known.word} ...]'])
    config = {'required': [_CONFIG], 'refused': []}.get(verb.config, [f'[{_CONFIG}]'])
    return [*words, *config, _WORKDIR if verb.workdir else f'[{_WORKDIR}]',
            *(f'--{flag}=VALUE' if flag in known.needed else f'[--{flag}=VALUE]'
              for flag in verb.flags), *([_KEYS] if config else [])]


def _usage_lines(command: str, parts: Sequence[str]) -> list[str]:
    """The usage in lines that break between its parts."""
    lines, indent = [f'  {command}'], ' ' * (len(command) + 3)
    for part in parts:
        if len(lines[-1]) + 1 + len(part) <= WIDTH:
            lines[-1] += f' {part}'
        else:
            lines.append(indent + part)
    return lines


def _wrapped(text: str, first: str = '', others: str | None = None) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, break_on_hyphens=False,
                         subsequent_indent=first if others is None else others,
                         break_long_words=False)
