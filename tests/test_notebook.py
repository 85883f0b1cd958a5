"""examples/atelier.ipynb runs from its first to its last cell, as on Colab or Kaggle."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / 'examples/atelier.ipynb'
PIECES = ('nbclient', 'nbformat', 'ipykernel')
MOST_OUTPUT = 4_000_000  # characters of all outputs together


def cells() -> dict[str, dict]:
    """The cells by their id."""
    return {cell['id']: cell for cell in json.loads(NOTEBOOK.read_text('utf-8'))['cells']}


def source(cell: dict) -> str:
    return ''.join(cell['source'])


def settings(text: str) -> set[str]:
    """The names in capitals that a cell gives values to at the start of a line."""
    return set(re.findall(r'^([A-Z_]+) = ', text, flags=re.M))


def test_it_is_kept_without_outputs():
    code = [cell for cell in cells().values() if cell['cell_type'] == 'code']
    assert len(code) == 8
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000


def test_one_cell_holds_the_settings_and_each_is_used():
    tagged = [cell for cell in cells().values() if 'parameters' in cell['metadata'].get('tags', ())]
    assert tagged == [cells()['settings']]
    rest = '\n'.join(source(cell) for cell in cells().values() if cell['id'] != 'settings'
                     and cell['cell_type'] == 'code')
    for name in settings(source(tagged[0])):
        assert re.search(rf'\b{name}\b', rest), name


def test_its_cells_go_the_whole_way():
    steps = [name for name in cells() if f'{name}-text' in cells()]
    assert steps == ['settings', 'look', 'train', 'report', 'predict', 'submit']


def execute(tmp_path: Path, **changes):
    """The notebook after all of its cells ran in an empty folder, with other settings."""
    for piece in PIECES:
        pytest.importorskip(piece, reason=f'{piece} is not installed: requirements-dev.txt has it')
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    given = next(cell for cell in notebook.cells if cell.id == 'settings')
    assert set(changes) <= settings(given.source)
    given.source += '\n' + '\n'.join(f'{name} = {value!r}' for name, value in changes.items())
    nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3',
                            resources={'metadata': {'path': str(tmp_path)}}).execute()
    return {cell.id: json.dumps(cell.get('outputs', [])) for cell in notebook.cells}


SMALL = ['--config.duration.steps=4', '--config.image.size=16', '--config.curriculum=()',
         '--config.model=dict(name="small_cnn", width=4, stages=2)',
         '--config.report.heat_maps=False', '--config.log.tensorboard=False']


def check(outputs: dict[str, str], submission: Path, header: str, rows: int) -> None:
    """The outputs of the cells, and the file."""
    for name in ('look', 'report'):
        assert '<iframe srcdoc=' in outputs[name], name
    assert 'test  accuracy' in outputs['train'] and '\\nstep ' not in outputs['train']
    assert 'probability' in outputs['predict']
    assert str(submission) in outputs['submit']
    lines = submission.read_text().splitlines()
    assert lines[0] == header and len(lines) == 1 + rows
    assert sum(map(len, outputs.values())) < MOST_OUTPUT


def test_own_pictures_lead_to_a_submission(tmp_path):
    rng = np.random.default_rng(0)
    for part, classes in (('train', ('flat', 'steep')), ('test', ('',))):
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(20):
                picture = rng.integers(0, 200, (24, 24), np.uint8)
                picture[(slice(8, 16), slice(None))[::-1 if name == 'steep' else 1]] = 255
                file = tmp_path / part / name / f'{number:02}_{number % 10}.png'
                cv2.imwrite(str(file), picture)
    rows = '\n'.join(f'{number:02}_{number % 10}.png,flat' for number in reversed(range(20)))
    (tmp_path / 'sample.csv').write_text(f'image,answer\n{rows}\n')
    outputs = execute(tmp_path, PROJECT=str(ROOT), FOLDER='train', TEST='test', SAMPLE='sample.csv',
                      OUT='out', GROUP_REGEX=r'_(\d+)\.', OPTIONS=SMALL)
    submission = tmp_path / 'out/submission/submission.csv'
    check(outputs, submission, 'image,answer', 20)
    assert '10 groups' in outputs['train']
    answers = [line.split(',') for line in submission.read_text().splitlines()[1:]]
    assert [image for image, _ in answers] == [row.split(',')[0] for row in rows.splitlines()]
    assert {answer for _, answer in answers} <= {'flat', 'steep'}


@pytest.mark.slow
def test_it_runs_as_it_is_but_for_a_small_model(tmp_path):
    outputs = execute(tmp_path, PROJECT=str(ROOT), OPTIONS=SMALL)
    check(outputs, tmp_path / 'atelier_runs/submission/submission.csv', 'ID,target', 359)


@pytest.mark.slow
def test_a_command_that_fails_stops_it(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(Exception, match='explore ended with exit code 2'):
        execute(tmp_path, PROJECT=str(ROOT), FOLDER=str(tmp_path / 'empty'))
