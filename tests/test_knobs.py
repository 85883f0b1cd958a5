"""Every knob of configs/common.py and of configs/vote/common.py is read by some verb.

The verbs run on tiny data, as far as they get without training, while every read of a config is
noted (config_reads.py). A knob passes if a verb reads it by its own name. It also passes if a verb
hands it on with its whole section, as in `Spec(**section)`, and its name is read somewhere in the
code: as an attribute, as a key, or as a parameter of a function.

So a knob fails if nothing reads it, and if it only ends up in a field or a dict entry that nothing
reads. What the test does not prove is that the value has the right effect, or any effect: a knob
that is read and then ignored passes. For that there are the tests of each part.
"""

import ast
import csv
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

import main
from configs import common
from configs.vote import common as vote_common
from input_pipeline.errors import DataError
from tests.config_reads import Reads, leaves, recorded
from tests.train_lib.commands import stored_runs
from train_lib.commands.command_line import parse
from train_lib.predictions import pseudo_file
from train_lib.probing.probe_spec import read_probe_spec
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError
from train_lib.studies.definition import read_study
from train_lib.training.data import load_manifest, split_data
from train_lib.training.extra_data import read_extra
from train_lib.training.init import init_spec
from train_lib.training.init_pretrained import with_found_weights
from train_lib.training.lr_finder import sweep_spec
from train_lib.training.predict_spec import predict_spec
from train_lib.training.stored_teachers import read_teachers
from train_lib.training.weight_averages import read_averaging

ROOT = Path(__file__).parents[1]
SKETCH = '--config=configs/sketch_vit.py'
SMALL = ['--config.image.size=16', '--config.batch_size=4', '--config.duration.steps=2',
         '--config.model=dict(name="vit_tiny_patch16_224", patch_size=8, embed_dim=8, depth=1, '
         'num_heads=2)', '--config.data.doodles.classes=2', '--config.data.doodles.per_class=8',
         '--config.data.doodles.writers=8', '--config.data.doodles.size=16']
NAMES = [f'{"ab"[k % 2]}/{k:02}.png' for k in range(16)]


def write_data(folder: Path) -> None:
    """Pictures of two classes, tables of their labels and objects, and out-of-fold predictions."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = folder / 'pictures' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    for file, header in (('table', ['image', 'label', 'age']), ('objects', ['id', '', 'objects'])):
        with open(folder / f'{file}.csv', 'w', newline='') as opened:
            csv.writer(opened).writerows(
                [header, *([name, name[0], k] for k, name in enumerate(NAMES))])
    np.savez(folder / 'predictions.npz', ids=NAMES, labels=np.arange(16) % 2, classes=['a', 'b'],
             logits=np.eye(2)[np.arange(16) % 2])


def run(*argv: str) -> None:
    assert main.main([*argv, *SMALL]) == 0


def run_verbs(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """All verbs of a run's config, or what they read before they train."""
    write_data(folder)
    run('train', SKETCH, '--config.plan_only=True', '--config.ema.decay=0.5',
        '--config.guard.skip=1', '--config.finetune.lora.rank=1',
        '--config.schedule.plateau.patience=dict(steps=1)', '--config.data.long_tail.imbalance=2',
        '--config.early_stopping.patience=dict(steps=1)',
        '--config.loss.class_weights.kind=effective')
    run('pack', f'{SKETCH}:folder={folder}/pictures', f'--config.pack.folder={folder}/packed')
    run('explore', f'{SKETCH}:packed={folder}/packed', f'--workdir={folder}/explore')
    table = f'{SKETCH}:csv={folder}/table.csv,images={folder}/pictures'
    run('curate', table, f'--workdir={folder}/curate',
        '--config.curate.borders=[dict(column="age", values=("3",), action="drop")]')
    run('curate', table, f'--workdir={folder}/curate_otherwise',
        '--config.curate.detectors=photographs,labels',
        '--config.curate.photographs.method=objects',
        f'--config.curate.photographs.objects={folder}/objects.csv',
        f'--config.curate.labels.predictions={folder}/predictions.npz')
    run('features', SKETCH, f'--out={folder}/features.parquet', '--config.features.evaluate=True')
    with pytest.raises(DataError):
        load_manifest(parse([f'{SKETCH}:tfds=no_such_data_set', *SMALL]).config)
    config = parse([SKETCH, *SMALL, '--config.probe.heads=[dict(name="one")]']).config
    for read in (init_spec, with_found_weights, predict_spec, read_probe_spec):
        read(config)
    sweep_spec(config.lr_find)
    for average in ('swa.start=dict(steps=1)', 'lookahead.every=2', 'schedule_free.beta=0.9'):
        read_averaging(parse([
            'train', SKETCH, '--config.optimizer.name=adamw', '--config.optimizer.b1=0.0',
            '--config.schedule.name=constant', f'--config.{average}']).config, 9, lambda *_: 1)
    config.distill.teachers, config.teacher.workdir = ('nowhere',), 'nowhere'
    with pytest.raises(ConfigError):
        read_teachers(config, None, None, accepted=False)
    pseudo_file.write(folder / 'pseudo.csv', dict(
        id=NAMES[:2], image=NAMES[:2], fold=['', ''], label=['a', 'b'], confidence=['1', '1']),
        dict(classes=[['class', ['a', 'b']]], images=f'{folder}/pictures', members=[],
             ancestors=[], round=1, earlier=[], not_checked=[]), {'': {}})
    config.data.extra.file = f'{folder}/pseudo.csv'
    small = parse([table, *SMALL]).config
    read_extra(config, split_data(small, load_manifest(small)).manifest)
    study = parse(['study', '--config=configs/studies/digits.py'])
    read_study(study.config, study.config_path)
    search = parse(['study', '--config=configs/studies/search.py'])
    read_study(search.config, search.config_path)
    patch.setattr('jax.distributed.initialize', lambda **settings: None)
    config.distributed.update(coordinator='here:1', processes=1, process=0)
    distributed.start(config.distributed)


def names_read() -> set[str]:
    """Attributes and keys that the code reads, and parameters that their functions read."""
    found = set()
    for path in [ROOT / 'main.py', *(path for package in ('train_lib', 'input_pipeline', 'models')
                                     for path in (ROOT / package).rglob('*.py'))]:
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                body = node.body if isinstance(node.body, list) else [node.body]
                loaded = {name.id for part in body for name in ast.walk(part)
                          if isinstance(name, ast.Name)}
                found |= {one.arg for one in given} & loaded
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.add(node.slice.value)
            elif (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                  and node.func.attr in ('get', 'pop') and node.args
                  and isinstance(node.args[0], ast.Constant)):
                found.add(node.args[0].value)
    return found


def unread(config: ConfigDict, reads: Reads) -> set[str]:
    """The knobs of a config that fail."""
    names = names_read()
    passed_on = {path for path in reads.in_bulk if path.rpartition('.')[2] in names}
    return leaves(config) - reads.by_key - passed_on


def planted(module, patch: pytest.MonkeyPatch, path: str) -> None:
    """Gives get_config one knob more, which nothing reads."""
    original = module.get_config

    def get_config():
        config = original()
        with config.unlocked():
            (config[path.partition('.')[0]] if '.' in path else config)['planted'] = 0
        return config

    patch.setattr(module, 'get_config', get_config)


def test_only_the_planted_knob_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    planted(common, monkeypatch, 'image.planted')
    with recorded(common.get_config()) as reads:
        run_verbs(tmp_path, monkeypatch)
    assert unread(common.get_config(), reads) == {'image.planted'}


def test_only_the_planted_knob_of_a_vote_is_not_read(tmp_path, monkeypatch):
    planted(vote_common, monkeypatch, 'planted')
    for name, seed in (('weak', 1), ('strong', 2)):
        stored_runs.kfold(tmp_path / name, seed)
    with recorded(vote_common.get_config()) as reads:
        assert stored_runs.vote([tmp_path / 'weak', tmp_path / 'strong'], tmp_path / 'vote',
                                '--config.weights=greedy', '--config.choose=accuracy') == 0
    assert unread(vote_common.get_config(), reads) == {'planted'}


@dataclasses.dataclass(frozen=True)
class Spec:
    size: int
    never_heard_of: int


def test_how_a_knob_is_read_is_told_apart():
    config = ConfigDict(dict(shown=dict(size=1, never_heard_of=2), other=dict(size=3, shape=4)))
    with recorded(config) as reads:
        Spec(**config.shown)
        config.copy_and_resolve_references().other.to_dict()['shape']
        config.to_json()
    assert reads.in_bulk == {'shown.size', 'shown.never_heard_of'}
    assert reads.by_key == {'shown', 'other', 'other.shape'}
    assert unread(config, reads) == {'shown.never_heard_of', 'other.size'}
    with recorded(config) as reads:
        Spec(**config.shown.to_dict())
        dict(config.to_dict()['other'])
    assert unread(config, reads) == {'shown.never_heard_of'} == leaves(config) - {
        'shown.size', 'other.size', 'other.shape'}


def test_nothing_is_noted_afterwards():
    config = ConfigDict(dict(size=1))
    with recorded(config) as reads:
        pass
    assert config.size == 1 and not reads.by_key and type(config.to_dict()) is dict
