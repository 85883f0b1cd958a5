"""Several processes on this machine, talking over loopback: one run, started and ended together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax._src.clusters.slurm_cluster import SlurmCluster

import main
from configs import common
from train_lib.commands.command import Command
from train_lib.run_dir.checkpoints import committed_steps, read_weights
from train_lib.run_dir.digests import write_digests
from train_lib.runtime import distributed
from train_lib.runtime.errors import AbsentError, ConfigError

ROOT = Path(__file__).parents[3]
SETTINGS = [
    '--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
    "--config.model=dict(name='vit_tiny_patch16_224', patch_size=4, embed_dim=32, depth=1, "
    'num_heads=2)', '--config.batch_size=16', '--config.log.every.steps=5',
    '--config.curriculum=()', '--config.sharding.min_size=0', '--config.log.tensorboard=false',
    '--config.optimizer.name=sgd', '--config.schedule.name=constant', '--config.schedule.lr=0.01',
    '--config.schedule.warmup.percent=0', '--config.compile_cache=no',
    '--config.checkpoint.every.steps=20', '--config.eval.every.steps=20']
FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


class Pod:
    """So many processes with one command; their words go to files beside the workdir."""

    def __init__(self, count: int, workdir: Path, *more: str, command=('main.py', *SETTINGS)):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        self.workdir, self.processes = workdir, []
        for i in range(count):
            pod = [f'--config.distributed.coordinator=localhost:{port}',
                   f'--config.distributed.processes={count}',
                   f'--config.distributed.process={i}'] if count > 1 else []
            with open(self._log(i), 'w') as file:
                self.processes.append(subprocess.Popen(
                    [sys.executable, *command, *more, *pod, f'--workdir={workdir}'], cwd=ROOT,
                    stdout=file, stderr=file,
                    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': FLAGS,
                                      'SLURMD_NODENAME': f'n{i + 1}'}))

    def _log(self, process: int) -> Path:
        return self.workdir.with_name(f'{self.workdir.name}.{process}.log')

    def log(self, process: int) -> str:
        return self._log(process).read_text()

    def wait(self, seconds: float = 240) -> list[int]:
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + 240
        while not (self.workdir / f'checkpoints/{step}').exists():
            assert time.monotonic() < end and None in {one.poll() for one in self.processes}
            time.sleep(0.05)


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def weights(workdir: Path, step: int) -> list[np.ndarray]:
    return jax.tree.leaves(read_weights(workdir / f'checkpoints/{step}')['params'])


def assert_same_run(left: Path, right: Path, step: int) -> None:
    """Up to the order in which devices add."""
    assert len(rows(left)) == len(rows(right))
    for a, b in zip(rows(left), rows(right)):
        assert {key: a[key] for key in ('step', 'split')} == {key: b[key] for key in (
            'step', 'split')}
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)
    for a, b in zip(weights(left, step), weights(right, step)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_two_processes_are_one_run(tmp_path):
    pod = Pod(2, tmp_path / 'pod', '--config.duration.steps=20', '--config.mesh.fsdp=2')
    alone = Pod(1, tmp_path / 'alone', '--config.duration.steps=20')
    assert pod.wait() == [0, 0], pod.log(0) + pod.log(1)
    assert alone.wait() == [0], alone.log(0)
    assert_same_run(pod.workdir, alone.workdir, 20)
    assert 'step 20/20' in pod.log(0)
    assert 'pod      2 processes, 2 devices, on n1, n2' in pod.log(0)
    assert not re.search('step|workdir|accuracy', pod.log(1))
    results = [json.loads((one.workdir / 'result.json').read_text()) for one in (pod, alone)]
    assert results[0]['test']['n'] == results[1]['test']['n'] == 270
    assert results[0]['test']['loss'] == pytest.approx(results[1]['test']['loss'], rel=1e-3)
    with np.load(pod.workdir / 'predictions/test.npz') as a, \
            np.load(alone.workdir / 'predictions/test.npz') as b:
        assert list(a['ids']) == list(b['ids'])
        np.testing.assert_allclose(a['logits'], b['logits'], atol=1e-3)
    assert (pod.workdir / 'report.html').exists()


@pytest.mark.faults
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_all_and_any_number_goes_on(tmp_path, victim):
    pod = Pod(2, tmp_path / 'pod', '--config.duration.steps=5000', '--config.mesh.fsdp=2')
    pod.wait_for_step(40)
    pod.processes[victim].kill()
    killed = time.monotonic()
    codes = pod.wait(60)
    assert time.monotonic() - killed < 60
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 75)
    assert re.search('lost another one|another task died', pod.log(1 - victim))

    pod = Pod(2, tmp_path / 'pod', '--config.duration.steps=5000', '--config.mesh.fsdp=1')
    pod.wait_for_step(100)
    pod.processes[victim].terminate()  # SIGTERM to one of them
    assert pod.wait(60) == [75, 75], pod.log(0) + pod.log(1)
    assert 'resume: from step' in pod.log(0)
    assert 'Stopped' in pod.log(0)

    stopped = committed_steps(pod.workdir / 'checkpoints')[-1]
    last = (stopped // 20 + 2) * 20
    alone = Pod(1, tmp_path / 'pod', f'--config.duration.steps={last}')
    unbroken = Pod(1, tmp_path / 'unbroken', f'--config.duration.steps={last}')
    assert alone.wait() == unbroken.wait() == [0], alone.log(0) + unbroken.log(0)
    assert f'resume: from step {stopped}' in alone.log(0)
    assert_same_run(alone.workdir, unbroken.workdir, last)


PROGRAM = '''
import sys
import jax.numpy as jnp
from jax.experimental import multihost_utils
from configs import common
from input_pipeline.errors import DataError
from train_lib.runtime import distributed
import main
from train_lib.commands import train as verb

def train(command):
    distributed.start(command.config.distributed)
    assert distributed.on_first(lambda: [1, 'a']) == [1, 'a']
    distributed.check_same('x', 'X')
    if command.config.seed == 1:
        distributed.check_same(str(command.config.distributed.process), 'The number')
    if command.config.seed == 2 and distributed.is_first():
        distributed.on_first(lambda: 1 / 0)
    if command.config.seed == 3:
        distributed.on_first(lambda: (_ for _ in ()).throw(DataError('No data: bring some.')))
    if command.config.seed == 4 and not distributed.is_first():
        raise OSError(28, 'No space left on device')
    while True:
        distributed.barrier('step')

verb.train = train
distributed.leave(lambda: main.main(sys.argv[1:]))
'''


@pytest.mark.faults
@pytest.mark.parametrize(('seed', 'words'), [
    (1, ('The number is not the same on process 1', 'The number is not the same on process 1')),
    (2, ('ZeroDivisionError', 'of 2 on n2 lost another one, process 0 on n1|another task died')),
    (3, ('No data: bring some.', 'No data: bring some.')),
    (4, ('of 2 on n1 lost another one, process 1 on n2|another task died', 'No space left'))])
def test_an_error_on_one_process_ends_all(tmp_path, seed, words):
    program = tmp_path / 'program.py'
    program.write_text(f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}')
    pod = Pod(2, tmp_path / 'pod', f'--config.seed={seed}', command=(str(program), *SETTINGS))
    begun = time.monotonic()
    codes = pod.wait(100)
    assert time.monotonic() - begun < 90
    assert all(codes)
    for process, text in enumerate(words):
        assert re.search(text, pod.log(process)), pod.log(process)


LOOK = '''
import sys
from pathlib import Path
from train_lib.run_dir import checkpoints
from train_lib.runtime import distributed
import main
from train_lib.commands import train as verb

def train(command):
    distributed.start(command.config.distributed)
    folder = command.workdir / 'checkpoints'
    found = checkpoints.latest_good(folder)
    print('newest', found.name, 'of', checkpoints.read_host(found)['best_step'], flush=True)
    distributed.check_same(str(command.config.distributed.process), 'The number')

verb.train = train
distributed.leave(lambda: main.main(sys.argv[1:]))
'''


def test_two_processes_find_the_checkpoint_that_they_resume_from(tmp_path):
    """The first one reads what it needs to find it, without waiting for the other, which waits
    for its answer."""
    writer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    for step in (1, 2):
        writer.save(tmp_path / f'pod/checkpoints/{step}', args=ocp.args.Composite(
            host=ocp.args.JsonSave({'best_step': 1})))
        write_digests(tmp_path / f'pod/checkpoints/{step}')
    program = tmp_path / 'program.py'
    program.write_text(f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n{LOOK}')
    pod = Pod(2, tmp_path / 'pod', command=(str(program), *SETTINGS))
    assert pod.wait() == [2, 2], pod.log(0) + pod.log(1)
    for process in (0, 1):
        log = pod.log(process)
        assert 'newest 2 of 1' in log
        assert 'The number is not the same on process 1 on n2 as on process 0 on n1: ' in log
        assert f'process {process} of 2 on n{process + 1} ends with code 2' in log


@pytest.mark.parametrize(('environment', 'expected'), [
    ({}, False),
    (dict(SLURM_JOB_ID='1', SLURM_NTASKS='4'), False),  # in the job's script, not under srun
    (dict(SLURM_STEP_NODELIST='a', SLURM_PROCID='0', SLURM_NTASKS='1'), False),
    (dict(SLURM_STEP_NODELIST='a[1-2]', SLURM_PROCID='0', SLURM_NTASKS='2'), True),
    (dict(OMPI_MCA_orte_hnp_uri='1.0;tcp://10.0.0.1:1', OMPI_COMM_WORLD_SIZE='2'), True),
    (dict(TPU_WORKER_HOSTNAMES='a'), False), (dict(TPU_WORKER_HOSTNAMES='a,b'), True),
    (dict(KUBERNETES_SERVICE_HOST='10.0.0.1'), False)])
def test_clusters(environment, expected):
    assert distributed.in_cluster(environment) is expected


def test_steps_of_one_job_meet_at_different_ports(monkeypatch):
    """The first one where JAX would meet by itself."""
    environment = dict(SLURM_JOB_ID='123456', SLURM_STEP_NODELIST='n[1-2]', SLURM_NTASKS='2',
                       SLURM_PROCID='0', SLURM_LOCALID='0')
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    ports = [distributed.slurm_port(environment | dict(SLURM_STEP_ID=str(step)))
             for step in (0, 1, 2, 4294967290)]
    assert len(set(ports)) == 4 and all(61440 <= int(port) < 65536 for port in ports)
    assert SlurmCluster.get_coordinator_address(None, None) == f'n1:{ports[0]}'
    asked = []
    monkeypatch.setenv('SLURM_STEP_ID', '2')
    monkeypatch.delenv('JAX_COORDINATOR_PORT', raising=False)
    monkeypatch.setattr('jax.distributed.initialize', lambda **_: asked.append(
        SlurmCluster.get_coordinator_address(None, os.environ['JAX_COORDINATOR_PORT'])))
    distributed.start(common.get_config().distributed)
    assert asked == [f'n1:{ports[2]}']
    os.environ.pop('JAX_COORDINATOR_PORT')


@pytest.mark.parametrize(('environment', 'words'), [
    ({}, ''), (dict(SLURM_NTASKS='1'), ''),
    (dict(SLURM_NTASKS='16', SLURM_JOB_ID='1'), '1 process, in a job of 16 tasks; srun starts'),
    (dict(SLURM_NTASKS='2', SLURM_STEP_NODELIST='a'), ''),
    (dict(KUBERNETES_SERVICE_HOST='10.0.0.1'), ''),
    (dict(KUBERNETES_SERVICE_HOST='10.0.0.1', JOB_COMPLETION_INDEX='1'), 'pip install kubernetes')])
def test_a_process_that_is_alone_in_a_job_says_so(environment, words):
    found = distributed.left_out(environment)
    assert words in found and bool(words) == bool(found) and len(found) < 70


@pytest.mark.parametrize(('gpus', 'tasks', 'words'), [
    ('8', '8(x2)', ''), ('8', '1(x2)', 'JAX uses 1 of 8 GPUs'), ('', '1(x2)', ''), ('4', '', ''),
    ('4', '2,1', 'JAX uses 2 of 4 GPUs')])
def test_gpus_that_no_task_has_are_said(gpus, tasks, words):
    found = distributed.idle_gpus(dict(SLURM_GPUS_ON_NODE=gpus, SLURM_STEP_TASKS_PER_NODE=tasks))
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(('changes', 'words'), [
    (dict(processes=2, process=0), 'HOST:PORT'), (dict(coordinator='here'), 'HOST:PORT'),
    (dict(coordinator='a:1', processes=2, process=2), '0 to processes - 1'),
    (dict(coordinator='a:1'), '0 to processes - 1')])
def test_mistakes(changes, words):
    config = common.get_config().distributed.to_dict() | changes
    with pytest.raises(ConfigError, match=r'config\.distributed') as error:
        distributed.start(config)
    assert words in str(error.value)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(('seconds', 'tries'), [(60, 3), (0, 1)])
def test_a_pod_waits_for_the_one_of_process_0(monkeypatch, capsys, seconds, tries):
    """Whose name is not known before it begins. If it does not come, another start may help, so the
    exit code is not that of a mistake, which a Job of Kubernetes would not start again."""
    asked = []

    def initialize(**_):
        asked.append(1)
        if len(asked) < 3:
            raise RuntimeError('Retry failed with all attempts exhausted')

    monkeypatch.setattr('jax.distributed.initialize', initialize)
    monkeypatch.setattr(distributed, 'in_cluster', lambda: True)
    config = common.get_config().distributed.to_dict() | dict(join_timeout=seconds)
    if tries == 3:
        distributed.start(config)
    else:
        train = types.SimpleNamespace(load=lambda: lambda command: distributed.start(config))
        monkeypatch.setitem(main.VERBS, 'train', train)
        monkeypatch.setattr('train_lib.commands.command_line.parse', lambda argv: Command(
            'train', None, '', None, (), ()))
        with pytest.raises(AbsentError):
            distributed.start(config)
        asked.clear()
        assert main.main([]) == 1
        assert 'did not find each other' in capsys.readouterr().err
    assert len(asked) == tries


@pytest.mark.parametrize(('nodes', 'error', 'words'), [
    (['n1', 'n2'], 'Gloo AllGather', 'process 0 of 2 on n1 lost another one, process 1 on n2 (Gl'),
    (['n1', 'n1', 'n2'], 'coordination: /job:jax_worker/replica:0/task:2 died',
     'process 0 of 3 on n1 lost another one, process 2 on n2 (coord'),
    (['n1', 'n2', 'n3'], 'heartbeat', 'process 0 of 3 on n1 lost another one (heartbeat)')])
def test_a_lost_process_is_named_with_its_node(monkeypatch, capsys, nodes, error, words):
    monkeypatch.setenv('SLURMD_NODENAME', 'n1')
    monkeypatch.setattr(distributed, '_nodes', nodes)
    monkeypatch.setattr('jax.process_count', lambda: len(nodes))
    distributed._explain(RuntimeError(error))
    assert words in capsys.readouterr().err


def test_a_node_is_called_as_slurm_or_the_system_calls_it(monkeypatch):
    monkeypatch.delenv('SLURMD_NODENAME', raising=False)
    assert distributed.node() == socket.gethostname()
    monkeypatch.setenv('SLURMD_NODENAME', 'n7')
    assert distributed.node() == 'n7'
    assert distributed._where([f'node-{k:03}' for k in range(100)]) == ', on node-000 to node-099'
    assert distributed._where(['a', 'a', 'b']) == ', on a, b' and distributed._where([]) == ''


def test_one_process_does_nothing(monkeypatch):
    monkeypatch.setattr(distributed, 'in_cluster', lambda: False)
    distributed.start(common.get_config().distributed)
    assert not distributed.several() and distributed.is_first()
    assert distributed.on_first(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        distributed.leave(lambda: 1 // 0)
    with pytest.raises(SystemExit) as left:
        distributed.leave(lambda: 2)
    assert left.value.code == 2
