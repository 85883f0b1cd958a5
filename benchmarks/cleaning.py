"""Does cleaning help? Test accuracy after training on dirty doodles and on what curate leaves.

    python benchmarks/cleaning.py [--seeds=3] [--steps=400] [--classes=16] [--per_class=60]

In the training part 10 % of the labels are wrong, 15 % of the drawings have an altered copy, and 10
% are photographs with random labels. The test part has clean drawings by other writers: what was
planted among them, and copies of them, is left out everywhere. curate sees only the training part,
and the out-of-fold predictions of a 3-fold run on it. All runs have the same number of steps.
Another seed means other drawings.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

import main as entry
from input_pipeline import sources

TEST_WRITERS = 10  # of 40
PLANTED = dict(wrong_labels=.1, near_duplicates=.15, photos=.1)


def run(verb: str, workdir: Path, common: list[str], *more: str) -> None:
    """One call of main.py, which must succeed."""
    code = entry.main([verb, '--config=configs/sketch_cnn.py', f'--workdir={workdir}', *common,
                       *more])
    if code:
        raise SystemExit(f'{verb} in {workdir} ended with {code}')


def parts(doodles: dict) -> tuple[pd.Series, pd.Series]:
    """Ids of the training part, and of the clean test part."""
    table = sources.load_source(dict(source='doodles', doodles=doodles)).table
    testing = table['group'].isin([f'w{w:02}' for w in range(40 - TEST_WRITERS, 40)])
    original = (table['truth/duplicate_of'] == '') & ~table['truth/photo']
    clean = original & (table['truth/class'] == table['label/class'])
    test = table['id'][testing & clean]
    tested = table['id'][testing & original]
    train = table['id'][~table['id'].isin(tested) & ~table['truth/duplicate_of'].isin(tested)]
    return train, test


def one_seed(seed: int, folder: Path, args) -> dict[str, float]:
    """Test accuracy of both arms."""
    doodles = dict(classes=args.classes, per_class=args.per_class, size=64, seed=seed, **PLANTED)
    train, test = parts(doodles)
    everything = sources.load_source(dict(source='doodles', doodles=doodles)).table['id']

    def decisions(name: str, dropped) -> str:
        pd.DataFrame(dict(id=list(dropped), action='drop')).to_csv(folder / name, index=False)
        return str(folder / name)

    common = [f'--config.data.doodles.{key}={value}' for key, value in doodles.items()] + [
        f'--config.seed={seed}', f'--config.duration.steps={args.steps}',
        '--config.image.size=32', '--config.log.tensorboard=False']
    only_train = decisions('only_train.csv', everything[~everything.isin(train)])
    run('train', folder / 'folds', common, f'--config.data.decisions={only_train}',
        '--config.split.kind=kfold', '--config.split.fold=all', '--config.split.folds=3',
        '--config.split.test=0.0', '--config.split.grouped=False')
    run('curate', folder / 'curated', common, f'--config.data.decisions={only_train}',
        '--config.curate.most=0.3',  # more is planted than defects usually are
        f'--config.curate.labels.predictions={folder / "folds"}')
    found = pd.read_csv(folder / 'curated/decisions.csv')
    arms = {'dirty': [], 'curated': found['id'][found['action'] == 'drop']}
    accuracy = {}
    for name, dropped in arms.items():
        used = train[~train.isin(dropped)]
        rows = pd.concat([used, test])
        pd.DataFrame(dict(id=rows, split=np.repeat(['train', 'test'], [len(used), len(test)]))
                     ).to_csv(folder / f'{name}_split.csv', index=False)
        left_out = decisions(f'{name}.csv', everything[~everything.isin(rows)])
        run('train', folder / name, common, f'--config.data.decisions={left_out}',
            '--config.split.kind=given', f'--config.split.file={folder / f"{name}_split.csv"}',
            '--config.split.val=0.0', '--config.split.grouped=False')
        result = json.loads((folder / name / 'result.json').read_text())
        accuracy[name] = result['test']['accuracy']
        accuracy[f'{name} pictures'] = len(used)
    return accuracy


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (('seeds', 3), ('steps', 400), ('classes', 16), ('per_class', 60)):
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for seed in range(args.seeds):
            (Path(folder) / str(seed)).mkdir()
            rows.append(one_seed(seed, Path(folder) / str(seed), args))
            print(f'seed {seed}', rows[-1], flush=True)
    table = pd.DataFrame(rows)
    gain = table['curated'] - table['dirty']
    print(table.to_string(float_format='{:.4f}'.format))
    if len(gain) > 1:
        half = stats.t.ppf(.975, len(gain) - 1) * gain.std() / len(gain) ** .5
        print(f'curated - dirty {gain.mean():+.4f} [{gain.mean() - half:+.4f}, '
              f'{gain.mean() + half:+.4f}]')


if __name__ == '__main__':
    main(sys.argv[1:])
