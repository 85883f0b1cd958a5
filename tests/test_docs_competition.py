"""docs/competition.md: its commands lead from train.csv to submission.csv and on to a server.

They run here in their order, as they stand on the page but for small pictures, a small model and
few folds and epochs; the competition is made from a few drawings like those of Omniglot.
"""

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import main as entry
from benchmarks import competition
from train_lib.metrics.intervals import accuracy_interval

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/competition.md'
DRAWERS = 20
CLASSES = {'Greek/character01': [(4, 4), (24, 24)], 'Greek/character02': [(4, 24), (24, 4)],
           'Latin/character01': [(4, 14), (24, 14)]}  # a line from here to there
SMALL = ['--config.image.size=16', '--config.curriculum=()', '--config.batch_size=8',
         '--config.model=dict(name="small_cnn", width=4, stages=2)',
         '--config.log.tensorboard=False', '--config.report.heat_maps=False']


def commands() -> list[list[str]]:
    """The words of every command of the page, in their order."""
    code = '\n'.join(line.strip() for line in PAGE.read_text('utf-8').splitlines()
                     if line.startswith('    '))
    joined = code.replace('\\\n', ' ')
    return [shlex.split(line) for line in joined.splitlines()]


def draw_omniglot(path: Path) -> None:
    """A .zip of drawings named as in Omniglot: a thick line between specks."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for character, (name, (start, end)) in enumerate(CLASSES.items()):
            for drawer in range(1, DRAWERS + 1):
                picture = np.full((28, 28), 255, np.uint8)
                moved = [tuple(int(v) for v in np.add(point, rng.integers(-2, 3, 2)))
                         for point in (start, end)]
                for start_at in rng.integers(0, 28, (12, 2)):
                    cv2.line(picture, start_at.tolist(),
                             (start_at + rng.integers(-3, 4, 2)).tolist(), 0, 1)
                cv2.line(picture, *moved, 0, 3)
                file = f'{name}/{character:04}_{drawer:02}.png'
                archive.writestr(file, cv2.imencode('.png', picture)[1].tobytes())


class Machines:
    """A laptop and a server, each a folder; a command runs on the one where the page is by then."""

    def __init__(self, folder: Path):
        self.laptop, self.server, self.data = (folder / name for name in
                                               ('laptop', 'server/atelier', 'server/data'))
        self.here = self.laptop
        for place in (self.laptop, self.server):
            place.mkdir(parents=True)
            (place / 'configs').symlink_to(ROOT / 'configs')
        draw_omniglot(self.laptop / 'omniglot_sketches.zip')

    def run(self, words: list[str], monkeypatch) -> int:
        """The exit code of a command of the page."""
        monkeypatch.chdir(self.here)
        if words[0] == 'rsync':
            assert words[1] == '-a' and len(words) == 4
            target = words[3].replace('server:/data/', f'{self.data}/').replace(
                'server:atelier/', f'{self.server}/')
            shutil.copytree(words[2], Path(target) / words[2])
            return 0
        words = [word.replace('/data/', f'{self.data}/') for word in words]
        if any(str(self.data) in word for word in words):
            self.here = self.server
            monkeypatch.chdir(self.here)
            # Nothing is read from where the run began.
            self.laptop.rename(self.laptop.with_name('elsewhere')) if self.laptop.exists() else None
        assert words[0] == 'python'
        if words[1] == 'benchmarks/competition.py':
            competition.main(words[2:])
            return 0
        assert words[1] == 'main.py'
        return entry.main(made_small(words[2:]))


def made_small(words: list[str]) -> list[str]:
    """The arguments of a command, with fewer folds and epochs and a small model if it has the
    config of an experiment."""
    if not any(word.startswith('--config=configs/sketch') for word in words):
        return words
    fewer = {'--config.split.folds=4': '--config.split.folds=2',
             '--config.duration.epochs=30': '--config.duration.epochs=1',
             '--config.duration.epochs=60': '--config.duration.epochs=2'}
    return [*(fewer.get(word, word) for word in words if '.model.' not in word), *SMALL]


# Left out of the short form: pages to look at, and the second run with what is made of it.
LONG = ('explore', 'curate', 'runs/vit', 'runs/submission')


@pytest.mark.parametrize('left_out', [
    pytest.param(LONG, id='short'), pytest.param((), marks=pytest.mark.slow, id='every command')])
def test_the_page_leads_to_a_submission(tmp_path, monkeypatch, capsys, left_out):
    machines = Machines(tmp_path)
    found = [words for words in commands() if not any(what in ' '.join(words) for what in left_out)]
    first = [words for words in found if 'make' in words]
    assert len(first) == 1
    for words in [*first, *(words for words in found if words not in first)]:
        assert machines.run(words, monkeypatch) == 0, ' '.join(words)
    said = capsys.readouterr()
    laptop, server = tmp_path / 'elsewhere', tmp_path / 'server/atelier'
    sample = pd.read_csv(laptop / 'omniglot/sample_submission.csv', dtype=str)
    assert 'runs/first/submission.csv' in said.out + said.err
    for folder in (laptop / 'runs/first', server / 'runs/longer',
                   *([] if left_out else [laptop / 'runs/submission'])):
        answers = pd.read_csv(folder / 'submission.csv', dtype=str)
        assert list(answers) == ['ID', 'image_path', 'target']
        assert answers[['ID', 'image_path']].equals(sample[['ID', 'image_path']])
        assert set(answers['target']) <= {name.replace('/character', '_') for name in CLASSES}
    for fold in ('fold_0', 'fold_1'):  # they went on, and did not begin again
        begun, continued = (place / f'runs/cnn/{fold}' for place in (laptop, server))
        steps = [json.loads((path / 'result.json').read_text())['steps']
                 for path in (begun, continued)]
        assert steps == [3, 6]
        assert (continued / 'metrics.jsonl').read_text().startswith(
            (begun / 'metrics.jsonl').read_text())
    # A submission needs no training pictures.
    shutil.rmtree(machines.data / 'omniglot/train')
    for path in server.glob('runs/cnn/fold_*/predictions/submit-*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = [word.replace('runs/longer', 'runs/again') for word in found[-1]]
    assert machines.run(again, monkeypatch) == 0
    answers = [(server / 'runs' / name / 'submission.csv').read_bytes()
               for name in ('longer', 'again')]
    assert answers[0] == answers[1]
    if not left_out:
        assert 'accuracy ' in said.out and 'new drawers' in said.out
        for name in ('look/explore.html', 'clean/decisions.csv', 'doubtful/gallery.html',
                     'compared/report.html'):
            assert (laptop / 'runs' / name).exists()


def test_the_page_has_the_whole_way():
    verbs = [words[2] if words[1] == 'main.py' and not words[2].startswith('-') else
             'train' if words[1] == 'main.py' else words[0] for words in commands()]
    assert verbs == ['train', 'submit', 'python', 'explore', 'curate', 'curate', 'train', 'vote',
                     'submit', 'python', 'rsync', 'rsync', 'train', 'submit']


# --- the competition itself ---------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    draw_omniglot(tmp_path / 'omniglot.zip')
    pictures = competition.from_omniglot(tmp_path / 'omniglot.zip')
    assert competition.make(pictures, tmp_path / 'made') == dict(train=48, test=12, classes=3)
    return tmp_path / 'made'


def test_drawers_are_hidden_and_names_tell_nothing(made):
    train = pd.read_csv(made / 'train.csv', dtype=str)
    sample = pd.read_csv(made / 'sample_submission.csv', dtype=str)
    truth = pd.read_csv(competition.truth_path(made), dtype=str)
    assert set(train['drawer']) == {str(drawer) for drawer in range(1, 17)}
    assert list(sample) == ['ID', 'image_path', 'target'] and sample['target'].nunique() == 1
    assert set(truth['drawer']) == {'17', '18', '19', '20'}
    assert list(truth['ID']) == list(sample['ID'])
    assert sorted(path.name for path in made.iterdir()) == [
        'sample_submission.csv', 'test', 'train', 'train.csv']
    for part, table in (('train', train), ('test', sample)):
        assert [f'{part}/{path.name}' for path in sorted((made / part).iterdir())] == list(
            table['image_path'])
    assert list(truth['target']) != sorted(truth['target'])  # the order tells nothing either


def test_a_submission_is_scored(made, tmp_path, capsys):
    truth = pd.read_csv(competition.truth_path(made), dtype=str)
    answers = truth[['ID', 'image_path', 'target']].sample(frac=1, random_state=0)
    wrong = answers['ID'].isin(truth['ID'][truth['drawer'] == '17'])
    answers.loc[wrong, 'target'] = 'nothing'
    answers.to_csv(tmp_path / 'submission.csv', index=False)
    found = competition.score(tmp_path / 'submission.csv', competition.truth_path(made))
    assert (found['accuracy'], found['rows']) == (0.75, 12)
    assert found['drawers'] == {'17': 0, '18': 1, '19': 1, '20': 1}
    right = (truth['drawer'] != '17').to_numpy()
    assert found['by_picture'] == accuracy_interval(right)
    assert found['by_drawer'] == accuracy_interval(right, truth['drawer'].to_numpy())
    competition.main(['score', f'--submission={tmp_path / "submission.csv"}',
                      f'--truth={competition.truth_path(made)}'])
    assert capsys.readouterr().out.startswith('accuracy 0.7500 (n 12)')


def test_a_submission_with_other_rows_is_not_scored(made, tmp_path):
    truth = competition.truth_path(made)
    pd.read_csv(truth, dtype=str)[1:].to_csv(tmp_path / 'submission.csv', index=False)
    with pytest.raises(ValueError, match='not exactly one row for each of the 12 IDs'):
        competition.score(tmp_path / 'submission.csv', truth)


def test_digits_have_no_drawers(tmp_path, capsys):
    competition.main(['make', '--source=digits', f'--folder={tmp_path / "digits"}'])
    assert '1,438 training and 359 test pictures of 10 classes' in capsys.readouterr().out
    truth = competition.truth_path(tmp_path / 'digits')
    assert list(pd.read_csv(truth)) == ['ID', 'image_path', 'target']
    assert competition.score(truth, truth)['accuracy'] == 1
