"""The verbs of main.py. To add one, write its function in a file here and add its line to VERBS."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Literal

from train_lib.commands.command import Command


@dataclasses.dataclass(frozen=True)
class Verb:
    """What the command line knows about a verb.

    Attributes:
        help: one line of `main.py --help`.
        function: 'module:name', loaded only when the verb is asked for; it takes a Command and
            returns the exit code.
        config: whether --config is 'required', 'optional' or 'refused', or is by default that 'of
            the run' in --workdir.
        default_config: the file that is read where --config is not given; '' for none.
        workdir: what --workdir must be, for a verb that cannot do without; '' for others.
        votes: whether it takes the configs of configs/vote, and no others.
        example: a config that it takes, in configs/.
        words: how many words may follow the verb; None for any number.
        flags: {name: what it is, in a few words} of the flags that it has besides --config and
            --workdir; their texts are in `Command.flags`.
        keys: {flag: key of the config} of those that only set a key.
    """

    help: str
    function: str
    config: Literal['required', 'optional', 'refused', 'of the run'] = 'required'
    workdir: str = ''
    votes: bool = False
    example: str = 'sketch_vit.py'
    words: int | None = 0
    default_config: str = ''
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def load(self) -> Callable[[Command], int]:
        """Imports the function."""
        module, _, name = self.function.partition(':')
        return getattr(importlib.import_module(module), name)


VERBS = {
    'train': Verb('train, evaluate, report (the default verb)',
                  'train_lib.commands.train:train'),
    'report': Verb('write report.html of a workdir again', 'train_lib.commands.report:report',
                   config='optional', workdir='a finished run'),
    'predict': Verb('write the logits of a trained workdir', 'train_lib.commands.predict:predict',
                    config='of the run', workdir='a trained run',
                    default_config='configs/common.py'),
    'vote': Verb('let folds and models vote', 'train_lib.commands.vote:vote',
                 votes=True, example='vote/digits.py'),
    'submit': Verb('predict with runs, let them vote, write submission.csv',
                   'train_lib.commands.submit:submit', config='optional', votes=True,
                   example='vote/digits.py', default_config='configs/vote/common.py',
                   flags=dict(workdirs='runs or globs of them, between commas',
                              sample='sample submission (CSV)',
                              images='folder, .zip or packed folder of its pictures',
                              out='folder of submission.csv (a new one in runs/)')),
    'pseudo': Verb('let runs label pictures that others may learn from',
                   'train_lib.commands.pseudo:pseudo', config='optional', votes=True,
                   example='vote/digits.py', default_config='configs/vote/common.py',
                   flags={'members': 'runs or globs of them, between commas, or a vote',
                          'images': 'unlabelled pictures: folder, .zip, packed folder or table',
                          'out': 'the file of the labels, .csv',
                          'labels': 'soft (the default) or hard',
                          'threshold': 'least confidence, as in 0.9 or 0.9,cat=0.8 (default: 0)',
                          'quantile': 'share of the answers of each class that is left out',
                          'per-class': 'most labels of a class, the surest (default: any number)',
                          'folds': 'each: fold k labels for fold k, the default of k-fold runs; '
                                   'all: they vote'}),
    'explore': Verb('look at a data set', 'train_lib.commands.explore:explore'),
    'curate': Verb('find duplicates, wrong labels, photographs',
                   'train_lib.commands.curate:curate'),
    'features': Verb('write what a backbone sees in each picture, as a table',
                     'train_lib.commands.features:features', config='of the run',
                     default_config='configs/common.py',
                     flags=dict(images='other pictures: a folder, .zip or packed folder',
                                out='the file of the features, .parquet')),
    'pack': Verb('pack a data set into ArrayRecord files', 'train_lib.commands.pack:pack'),
    'lr_find': Verb('sweep the learning rate', 'train_lib.commands.lr_find:lr_find'),
    'study': Verb('run an ablation study', 'train_lib.commands.study:study_command',
                  example='studies/digits.py', flags=dict(
                      workers='processes, or jobs of Slurm; 1 or more',
                      launcher='local or slurm'),
                  keys=dict(workers='study.workers', launcher='study.launcher')),
    'plan': Verb('what a run takes on devices that need not be here',
                 'train_lib.commands.plan:plan'),
    'export': Verb('write a trained run as StableHLO, for timm, or as ONNX',
                   'train_lib.commands.export:export', config='refused',
                   workdir='a trained run',
                   flags=dict(format='stablehlo, timm or onnx', out='the folder that is made')),
    'compare': Verb('put runs beside each other: compare runs/*',
                    'train_lib.commands.compare:compare', config='refused', words=None,
                    flags=dict(workdirs='patterns of workdirs, between commas',
                               against='the run that differences are to (default: the first)')),
    'models': Verb('list the models; a word after it filters',
                   'train_lib.commands.models:print_models', config='optional', words=1),
}
