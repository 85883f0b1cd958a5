"""Cells run in one process: what they leave, what fails alone, what is run again."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train_lib.commands.command_line import parse
from train_lib.commands.study import study_command, study_of, worker_command
from train_lib.commands.train import run_any
from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger, supervisor
from train_lib.studies.cell_results import read_cells
from train_lib.studies.screen import arm_lines, epoch_of
from train_lib.studies.study_file import claim
from train_lib.studies.tables import write_tables
from train_lib.studies.worker import check_arms, work

FILE = '''
from configs.studies import digits

def get_config(arg=None):
    config = digits.get_config(arg)
    config.duration = dict(steps=4)
    config.log.every = dict(steps=1)
    config.report.heat_maps = False
    config.study.seeds = (0,)
    return config

def study():
    return {arms}
'''


def command_of(tmp_path, arms, *more):
    path = tmp_path / 'mine.py'
    path.write_text(FILE.format(arms=arms))
    return parse(['study', f'--config={path}', f'--workdir={tmp_path / "study"}', *more])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A study one of whose arms fails in the middle of its run."""
    folder = tmp_path_factory.mktemp('studies')
    command = command_of(folder, "{'fails': {'schedule.lr': 1e30}, 'works': {}}",
                         '--config.study.baseline=works')
    study = study_of(command)
    claim(study, command.workdir)
    before = logging.getLogger('train_lib').level
    logging.getLogger('train_lib').setLevel(logging.INFO)
    assert work(study, command.workdir, run_any) == 0
    logging.getLogger('train_lib').setLevel(before)
    write_tables(study, command.workdir)
    return command, study


def test_a_cell_is_an_ordinary_run(finished):
    command, _ = finished
    folder = command.workdir / 'works/seed_0'
    result = json.loads((folder / 'result.json').read_text())
    assert result['steps'] == 4 and result['status'] == 'done'
    assert json.loads((folder / 'config.json').read_text())['seed'] == 0
    assert (folder / 'predictions/test.npz').exists() and (folder / 'report.html').exists()
    assert not (folder / 'checkpoints').exists() and not list(folder.glob('lease*'))
    assert 'test  accuracy' in (folder / 'log.txt').read_text()
    known = ledger.record(folder)
    assert known['status'] == 'done' and known['memory_bytes'] > 2 ** 20 and known['codes']


def test_a_failure_is_alone_and_explained(finished, capsys):
    command, study = finished
    folder = command.workdir / 'fails/seed_0'
    assert 'Traceback' in (folder / 'error.txt').read_text()
    assert 'DivergedError' in ledger.record(folder)['error']
    cells = read_cells(study, command.workdir)
    assert list(cells['status']) == ['failed', 'done']
    text = (command.workdir / 'table.md').read_text()
    assert '0/1' in text and '1 failed' in text
    assert study_command(command) == 1  # all cells are over, and nothing is run


@pytest.mark.slow
def test_a_full_disk_is_not_the_fault_of_a_cell(tmp_path):
    command = command_of(tmp_path, "{'a': {}}", '--config.study.baseline=a')
    study = study_of(command)
    claim(study, command.workdir)
    log = command.workdir / 'a/seed_0/log.txt'
    log.parent.mkdir(parents=True)
    log.symlink_to('/dev/full')

    def full(*given):
        logging.getLogger().warning('something')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'there')

    with pytest.raises(ConfigError, match=r'there cannot be written .*No space left.*again'):
        work(study, command.workdir, full)
    assert ledger.record(command.workdir / 'a/seed_0') is None
    log.unlink()
    assert work(study, command.workdir, run_any) == 0
    assert ledger.record(command.workdir / 'a/seed_0')['status'] == 'done'


def test_a_failed_cell_runs_again_when_asked(tmp_path):
    command = command_of(tmp_path, "{'a': {}}")
    study = study_of(command)
    folder = command.workdir / study.cells()[0].folder
    ledger.finish(ledger.take(folder, 'code'), 'failed', error='x')
    (folder / 'error.txt').write_text('x')
    assert work(study, command.workdir, run_any) == 0
    assert ledger.record(folder)['status'] == 'failed'
    supervisor.reopen_failed(study, command.workdir)
    assert work(study, command.workdir, run_any) == 0
    known = ledger.record(folder)
    assert (known['status'], known['attempts']) == ('done', 3)
    assert len(known['codes']) == 2 and not (folder / 'error.txt').exists()


@pytest.mark.parametrize('arms, words', [
    ("{'a': {}, 'b': {'schedule.name': 'cosin'}}", ["'b'", 'cosine']),
    ("{'a': {}, 'b': {'model': dict(name='small_cnn', wdth=4)}}", ["'b'", 'width']),
    ("{'a': {}, 'b': {'curriculum': [dict(transforms=['hflop'])]}}", ["'b'", 'hflip']),
    ("{'a': {}, 'b': {'split.val': 0.9, 'split.test': 0.9}}", ["'b'", 'split'])])
def test_arms_are_assembled_before_any_runs(tmp_path, arms, words):
    command = command_of(tmp_path, arms)
    with pytest.raises(ConfigError) as caught:
        check_arms(study_of(command), command.workdir)
    for text in words:
        assert text in str(caught.value)


def test_an_arm_that_starts_from_a_run_that_saw_its_rows_does_not_begin(finished, tmp_path):
    """Seed 0 has the split of that run, seed 1 has not."""
    first, = (finished[0].workdir / finished[1].arm('works').folder).glob('seed_*')
    arms = f"{{'scratch': {{}}, 'tuned': {{'init.from': {str(first)!r}}}}}"
    for seeds, more in (('(0,)', ()), ('(0, 1)', ('--config.init.seen=accept',))):
        command = command_of(tmp_path, arms, f'--config.study.seeds={seeds}', *more)
        check_arms(study_of(command), tmp_path)
    command = command_of(tmp_path, arms, '--config.study.seeds=(0, 1)')
    with pytest.raises(ConfigError, match=r"arm 'tuned' cannot run: seed 1: .*init\.seen=accept"):
        check_arms(study_of(command), tmp_path)


def test_a_cell_in_which_workers_keep_dying_has_failed(tmp_path):
    command = command_of(tmp_path, "{'a': {}}")
    study = study_of(command)
    folder = command.workdir / 'a/seed_0'
    log, deaths = tmp_path / 'log', {}
    log.write_text('Fatal Python error: Segmentation fault\n')
    program = ('import os, sys; from pathlib import Path\n'
               'from train_lib.studies.ledger import take\n'
               'assert take(Path(sys.argv[1]), "code"); os.abort()')
    for time in range(supervisor.DEATHS + 1):
        assert ledger.record(folder) is None
        process = subprocess.Popen([sys.executable, '-c', program, str(folder)])
        process.wait()
        if time == 1:  # it made progress, so the count starts again
            (folder / 'checkpoints/5').mkdir(parents=True)
        supervisor.note_death(study, command.workdir, supervisor.Worker(0, process, log),
                               process.returncode, deaths)
    assert ledger.record(folder)['status'] == 'failed'
    assert 'SIGABRT' in ledger.record(folder)['error']
    assert 'Segmentation fault' in (folder / 'error.txt').read_text()


def test_a_worker_is_the_same_command_in_the_same_workdir(tmp_path):
    command = command_of(tmp_path, "{'a': {}}", '--workers=2')
    python, program, *argv = worker_command(command, tmp_path / 'new')
    assert python == sys.executable
    assert os.path.samefile(program, Path(__file__).parents[3] / 'main.py')
    assert argv == [*command.argv, f'--workdir={tmp_path / "new"}']
    assert parse(argv).workdir == tmp_path / 'new'


def test_every_worker_has_its_share():
    cores = supervisor.share_of_cores
    assert [cores(i, 3, list(range(8))) for i in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [cores(i, 3, [4, 6]) for i in range(3)] == [[4], [6], [4]]
    four = dict(CUDA_VISIBLE_DEVICES='0,1,2,3')
    devices = lambda *key: supervisor.share_of_devices(*key, four)
    assert devices(0, 1) == {}
    assert [devices(i, 2)['CUDA_VISIBLE_DEVICES'] for i in range(2)] == ['0,1', '2,3']
    assert [devices(i, 3)['CUDA_VISIBLE_DEVICES'] for i in range(3)] == ['0', '1', '2']
    shared = [devices(i, 8) for i in range(8)]
    assert sorted(share['CUDA_VISIBLE_DEVICES'] for share in shared) == list('00112233')
    assert {share['XLA_PYTHON_CLIENT_MEM_FRACTION'] for share in shared} == {'0.450'}
    assert supervisor.share_of_devices(0, 2, dict(CUDA_VISIBLE_DEVICES='')) == {}


def test_there_is_one_line_per_arm(finished, tmp_path):
    command, study = finished
    cells = read_cells(study, command.workdir)
    first, second = arm_lines(study, command.workdir, cells, 40)
    assert '×' in first and '0/1' in first
    value = cells['value'][1]
    assert second.startswith('works') and second.endswith(f'●  1/1  {value:.4f}')
    assert len(first) <= 40 and first.index('×') == second.index('●')
    narrow = arm_lines(study, command.workdir, cells, 20)[1]
    assert len(narrow) == 20 and narrow.startswith('wo') and '…' in narrow
    assert epoch_of(command.workdir / 'works/seed_0') == pytest.approx(4 * 64 / 1257)
    assert epoch_of(tmp_path) == 0.0
