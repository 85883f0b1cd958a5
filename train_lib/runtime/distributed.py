"""Several processes, one run: how they find each other, agree, and end together.

Every process runs the same program on its part of each batch. Only process 0 writes the shared
files; of a checkpoint, every process writes its part to the same folder. Whatever steers the run is
the same everywhere: scores come from gathered logits, and decisions that depend on files or signals
are taken once and sent to all. With one process nothing here does anything.
"""

import gc
import glob
import importlib.util
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.errors import DataError
from models.errors import ModelError
from train_lib.runtime.errors import AbsentError, CheckpointError, ConfigError
from train_lib.runtime.signals import STOPPED

log = logging.getLogger(__name__)
T = TypeVar('T')
_USER_ERRORS = {kind.__name__: kind for kind in (ConfigError, DataError, ModelError,
                                                 CheckpointError)}
# What XLA, Gloo, NCCL and JAX's coordinator say when a process is gone.
_LOST = re.compile('gloo|nccl|coordination|unavailable|deadline.exceeded|barrier|heartbeat', re.I)
# What JAX says if the system knows no machine of process 0, as before its pod has begun.
_ABSENT = re.compile('Retry failed|Failed to recognize coordinator')
_TASK = re.compile(r'/task:(\d+)')  # a process, as the coordinator calls it
_NAME_BYTES = 64  # the longest name of a machine that Linux allows
_nodes: list[str] = []  # of the processes, by their numbers; empty before they have met


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several, by what Slurm, Open MPI, Kubernetes or a TPU pod
    put into its environment; JAX then finds out everything else. A job of one process is not a
    cluster."""
    def count(key: str) -> int:
        text = environment.get(key, '')
        return int(text) if text.isdigit() else 1

    if 'SLURM_STEP_NODELIST' in environment and 'SLURM_PROCID' in environment:
        return count('SLURM_NTASKS') > 1
    if 'OMPI_MCA_orte_hnp_uri' in environment:
        return count('OMPI_COMM_WORLD_SIZE') > 1
    hosts = environment.get('TPU_PROCESS_ADDRESSES', environment.get('TPU_WORKER_HOSTNAMES'))
    if hosts is not None:  # GKE
        return ',' in hosts or 'MEGASCALE_NUM_SLICES' in environment
    if 'KUBERNETES_SERVICE_HOST' in environment:
        return ('JOB_COMPLETION_INDEX' in environment
                and importlib.util.find_spec('kubernetes') is not None)
    has_tpu = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
    return bool(has_tpu) and importlib.util.find_spec('libtpu') is not None


def start(config: Mapping) -> None:
    """Joins the processes of config.distributed; call it before anything uses a device.

    Args:
        config: config.distributed.

    Raises:
        ConfigError: an invalid address or number, or the other processes could not be reached.
        AbsentError: process 0 of a cluster has not come within join_timeout.
    """
    coordinator, processes, process = (config[key] for key in
                                       ('coordinator', 'processes', 'process'))
    if coordinator in ('auto', ''):
        if processes or process != -1:
            raise ConfigError(f'config.distributed.processes = {processes} and process = {process} '
                              f'need config.distributed.coordinator: give it as HOST:PORT, the '
                              f'address of process 0.')
        if not coordinator or not in_cluster():
            if coordinator and left_out():
                log.info('pod      %s', left_out())
            return
        if 'SLURM_STEP_NODELIST' in os.environ:
            os.environ.setdefault('JAX_COORDINATOR_PORT', slurm_port())
        given: dict[str, Any] = {}
    else:
        if not coordinator.rpartition(':')[0] or not coordinator.rpartition(':')[2].isdigit():
            raise ConfigError(f'config.distributed.coordinator = {coordinator!r}: give HOST:PORT, '
                              f"'auto', or '' for one process.")
        if not 0 <= process < processes:
            raise ConfigError(f'config.distributed.process = {process} with processes = '
                              f'{processes}: give each process a number from 0 to processes - 1.')
        given = dict(coordinator_address=coordinator, num_processes=processes, process_id=process,
                     cluster_detection_method='deactivate')
    end = time.monotonic() + config['join_timeout']
    while not _joined(given, config, end):
        time.sleep(1)
    _meet()
    if not is_first():
        for ours in ('train_lib', 'input_pipeline', 'models', 'main'):
            logging.getLogger(ours).setLevel(logging.WARNING)
    log.info('pod      %d processes, %d devices%s', jax.process_count(), jax.device_count(),
             _where(_nodes))
    if coordinator == 'auto' and idle_gpus():
        log.info('         %s', idle_gpus())


def _joined(given: Mapping[str, Any], config: Mapping, end: float) -> bool:
    """Joins the other processes; False if process 0 is not there yet, and `end` has not come."""
    try:
        jax.distributed.initialize(**given, initialization_timeout=config['join_timeout'],
                                   heartbeat_timeout_seconds=config['timeout'])
    except (RuntimeError, ValueError) as error:
        absent = _ABSENT.search(str(error))
        if absent and time.monotonic() < end:  # in Kubernetes JAX itself gives up within a minute
            return False
        kind = AbsentError if absent else ConfigError
        raise kind(f'config.distributed.coordinator = {config["coordinator"]!r}: the processes did '
                   f'not find each other (on {node()}: {_first_line(error)}); check the address, '
                   f'and that all of them were started.') from None
    return True


def left_out(environment: Mapping[str, str] = os.environ) -> str:
    """What a process that runs alone leaves out, by its environment; '' for nothing."""
    tasks = environment.get('SLURM_NTASKS', '')
    if tasks.isdigit() and int(tasks) > 1 and 'SLURM_STEP_NODELIST' not in environment:
        return f'1 process, in a job of {tasks} tasks; srun starts one for each'
    if 'JOB_COMPLETION_INDEX' in environment and 'KUBERNETES_SERVICE_HOST' in environment:
        return '1 process; `pip install kubernetes` joins the pods of a Job'
    return ''


def idle_gpus(environment: Mapping[str, str] = os.environ) -> str:
    """Says if a step of Slurm has fewer tasks on its nodes than GPUs: JAX gives one to each."""
    gpus = environment.get('SLURM_GPUS_ON_NODE', '')
    tasks = re.match(r'\d+', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
    if not gpus.isdigit() or not tasks or int(tasks[0]) >= int(gpus):
        return ''
    return f'JAX uses {tasks[0]} of {gpus} GPUs per node: give --ntasks-per-node={gpus}'


def slurm_port(environment: Mapping[str, str] = os.environ) -> str:
    """The port of process 0: JAX's own for the first step of a job. Those of other steps are not
    the same, as with JAX 0.10.2, where a second one would meet the first on their common node."""
    job, step = (int(environment.get(key, '0')) for key in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
    return str((job + 1021 * step) % 2**12 + 65536 - 2**12)


def node() -> str:
    """The name of this machine: that of Slurm's node, or the system's (in Kubernetes the pod's)."""
    return os.environ.get('SLURMD_NODENAME') or socket.gethostname()


def _meet() -> None:
    """Tells all processes on which nodes they are, for messages when one is lost."""
    _nodes.clear()
    if several():
        own = np.frombuffer(node().encode()[:_NAME_BYTES].ljust(_NAME_BYTES), np.uint8)
        _nodes.extend(bytes(row).decode(errors='replace').strip() for row in
                      np.asarray(multihost_utils.process_allgather(own)).astype(np.uint8))


def _where(nodes: list[str]) -> str:
    """The nodes, each once, shortened to what fits behind the line of the pod."""
    names = list(dict.fromkeys(nodes))
    text = ', '.join(names)
    if len(text) > 36:
        text = f'{names[0]} to {names[-1]}'
        text = text if len(text) <= 36 else f'{len(names)} nodes'
    return f', on {text}' if names else ''


def _named(process: int) -> str:
    """A process and its node, for messages."""
    where = f' on {_nodes[process]}' if process < len(_nodes) else ''
    return f'process {process}{where}'


def _this_one() -> str:
    return f'process {jax.process_index()} of {jax.process_count()} on {node()}'


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes the shared files."""
    return jax.process_index() == 0


def on_first(call: Callable[[], T]) -> T:
    """Runs call() on process 0 only, and returns its result on every process.

    Args:
        call: returns something that JSON can hold. With several processes its tuples become lists.

    Raises:
        ConfigError, DataError, ModelError or CheckpointError: process 0 raised it; every process
            raises it then.
    """
    if not several():
        return call()
    result = problem = None
    if is_first():
        try:
            result = call()
        except tuple(_USER_ERRORS.values()) as error:
            problem = type(error).__name__, str(error)
    result, problem = json.loads(_broadcast(json.dumps([result, problem])))
    if problem:
        raise _USER_ERRORS[problem[0]](problem[1])
    return result


def check_same(value: str, what: str) -> None:
    """Compares a text, such as a digest, between the processes.

    Raises:
        ConfigError: it is not the same on all of them; `what` names it there.
    """
    if several():
        theirs = _broadcast(value)
        same = multihost_utils.process_allgather(np.array([theirs == value]))
        if not same.all():
            other = int(np.flatnonzero(~same.ravel())[0])
            raise ConfigError(f'{what} is not the same on {_named(other)} as on {_named(0)}: give '
                              f'every process the same command and the same files.')


def barrier(name: str) -> None:
    """Returns when every process has called it with this name."""
    if several():
        multihost_utils.sync_global_devices(name)


def _broadcast(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    return bytes(multihost_utils.broadcast_one_to_all(np.resize(data, size))).decode()


class StopTogether:
    """SIGTERM or Ctrl-C to one process makes the same call return True on all of them.

    JAX's preemption service passes the signal on and chooses the first call that no process has
    made yet; every other call costs nothing. All processes must make the same calls: one per step,
    and one per batch of an evaluation.
    """

    # Shared by all instances in a process: the service chooses an absolute number.
    _calls = itertools.count(1)

    def __init__(self) -> None:
        self._reached = False

    def __enter__(self) -> 'StopTogether':
        # The service catches SIGTERM; Ctrl-C is made to mean the same.
        self._before = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        if not self._reached:
            self._reached = multihost_utils.reached_preemption_sync_point(next(self._calls))
            if self._reached:
                log.info('SIGTERM to one of the processes: saving, then stopping.')
        return self._reached


def leave(main: Callable[[], int]) -> None:
    """Ends the program with the exit code that main() returns.

    If one of several processes fails, it must not wait for the others, which wait for it: it prints
    why and exits at once, so that they notice.
    """
    try:
        code = main()
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        code = 1
        _explain(error)
    if code in (0, STOPPED) or not jax.distributed.is_initialized():
        gc.freeze()  # the system frees all memory; Python would search it for cycles for a second
        sys.exit(code)
    print(f'main.py: {_this_one()} ends with code {code}, and so do the others.',
          file=sys.stderr, flush=True)
    os._exit(code)


def _explain(error: Exception) -> None:
    # XLA raises ValueError for some errors of the network.
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        print(f'main.py: {_this_one()} lost {_lost(str(error))} ({_first_line(error)}): see what '
              f'that one printed, and start all of them again with the same --workdir.',
              file=sys.stderr, flush=True)
    else:
        traceback.print_exc()


def _lost(text: str) -> str:
    """Which process an error is about, where it tells or there is only one other."""
    others = [number for number in range(jax.process_count()) if number != jax.process_index()]
    found = {int(number) for number in _TASK.findall(text)} & set(others)
    known = found if len(found) == 1 else set(others)
    return f'another one, {_named(known.pop())}' if len(known) == 1 else 'another one'


def _first_line(error: Exception) -> str:
    return str(error).strip().partition('\n')[0][:200]
