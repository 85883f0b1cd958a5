"""Several processes, one run: how they find each other, agree, and end together.

Every process runs the same program on its part of each batch. Process 0 alone writes what all
share (all write their part of a checkpoint, to the same folder). Whatever steers the run is the
same everywhere: scores come from gathered logits, and decisions that depend on files or signals
are taken once and told to all. With one process nothing here does anything.
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
import sys
import traceback
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.errors import DataError
from models.errors import ModelError
from train_lib.runtime.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)
_USER_ERRORS = {kind.__name__: kind for kind in (ConfigError, DataError, ModelError,
                                                 CheckpointError)}
# What XLA, Gloo, NCCL and JAX's coordinator say when a process is gone.
_LOST = re.compile('gloo|nccl|coordination|unavailable|deadline.exceeded|barrier|heartbeat', re.I)


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several, by what Slurm, Open MPI, Kubernetes or a TPU pod
    put into its environment; JAX then finds out the rest. One process alone is no cluster."""
    def count(key):
        text = environment.get(key, '')
        return int(text) if text.isdigit() else 1

    if 'SLURM_STEP_NODELIST' in environment and 'SLURM_PROCID' in environment:
        return count('SLURM_NTASKS') > 1
    if 'OMPI_MCA_orte_hnp_uri' in environment:
        return count('OMPI_COMM_WORLD_SIZE') > 1
    if 'TPU_WORKER_HOSTNAMES' in environment:  # GKE
        return ',' in environment['TPU_WORKER_HOSTNAMES'] or 'MEGASCALE_NUM_SLICES' in environment
    if 'KUBERNETES_SERVICE_HOST' in environment:
        return ('JOB_COMPLETION_INDEX' in environment
                and importlib.util.find_spec('kubernetes') is not None)
    has_tpu = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
    return bool(has_tpu) and importlib.util.find_spec('libtpu') is not None


def start(config: Mapping) -> None:
    """Joins the processes of config.distributed, before anything uses a device.

    Raises:
        ConfigError: a wrong number, or the others could not be reached.
    """
    coordinator, processes, process = (config[key] for key in
                                       ('coordinator', 'processes', 'process'))
    if coordinator in ('auto', ''):
        if processes or process != -1:
            raise ConfigError(f'config.distributed.processes = {processes} and process = {process} '
                              f'need config.distributed.coordinator: give it as HOST:PORT, the '
                              f'address of process 0.')
        if not coordinator or not in_cluster():
            return
        given = {}
    else:
        if not coordinator.rpartition(':')[0] or not coordinator.rpartition(':')[2].isdigit():
            raise ConfigError(f'config.distributed.coordinator = {coordinator!r}: give HOST:PORT, '
                              f"'auto', or '' for one process.")
        if not 0 <= process < processes:
            raise ConfigError(f'config.distributed.process = {process} with processes = '
                              f'{processes}: give each process a number from 0 to processes - 1.')
        given = dict(coordinator_address=coordinator, num_processes=processes, process_id=process,
                     cluster_detection_method='deactivate')
    try:
        jax.distributed.initialize(**given, initialization_timeout=config['join_timeout'],
                                   heartbeat_timeout_seconds=config['timeout'])
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f'config.distributed.coordinator = {coordinator!r}: the processes did '
                          f'not find each other ({_first_line(error)}); check the address, and '
                          f'that all of them were started.') from None
    if not is_first():
        for ours in ('train_lib', 'input_pipeline', 'models', 'main'):
            logging.getLogger(ours).setLevel(logging.WARNING)
    log.info('pod      %d processes, %d devices', jax.process_count(), jax.device_count())


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what all share."""
    return jax.process_index() == 0


def on_first(call: Callable[[], object]) -> object:
    """What call() returns on process 0 (it must fit into JSON), on every process.

    A mistake of the user that process 0 finds is raised on every process.
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
    """Raises ConfigError if a text, such as a digest, is not the same on every process."""
    if several():
        theirs = _broadcast(value)
        same = multihost_utils.process_allgather(np.array([theirs == value]))
        if not same.all():
            raise ConfigError(f'{what} is not the same on process '
                              f'{int(np.flatnonzero(~same.ravel())[0])} as on process 0: give '
                              f'every process the same command and the same files.')


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if several():
        multihost_utils.sync_global_devices(name)


def _broadcast(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    return bytes(multihost_utils.broadcast_one_to_all(np.resize(data, size))).decode()


class StopTogether:
    """SIGTERM or Ctrl-C to one process, answered at the same call by all of them.

    JAX's preemption service passes the signal on and names the call, the first that no process
    has made yet; a call that nobody has to answer costs nothing. All processes must make the
    same calls, one a step and one a batch of an evaluation.
    """

    # Of the process, not of one instance: the service names an absolute number.
    _calls = itertools.count(1)

    def __init__(self):
        self._reached = False

    def __enter__(self):
        # The service catches SIGTERM; Ctrl-C shall mean the same.
        self._before = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        if not self._reached:
            self._reached = multihost_utils.reached_preemption_sync_point(next(self._calls))
            if self._reached:
                log.info('SIGTERM to one of the processes: saving, then stopping.')
        return self._reached


def leave(main: Callable[[], int]) -> None:
    """Ends the program with the code that main() returns.

    One of several processes that fails does not wait for the others, which wait for it: it says
    why and is gone at once, so that they notice.
    """
    try:
        code = main()
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        code = 1
        _explain(error)
    if code in (0, 75) or not jax.distributed.is_initialized():
        gc.freeze()  # the system frees it all; Python would search it for cycles, for a second
        sys.exit(code)
    print(f'main.py: process {jax.process_index()} of {jax.process_count()} ends with code {code}, '
          f'and so do the others.', file=sys.stderr, flush=True)
    os._exit(code)


def _explain(error: Exception) -> None:
    # XLA raises ValueError for some of its own.
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        print(f'main.py: process {jax.process_index()} of {jax.process_count()} lost another one '
              f'({_first_line(error)}): see what that one said, and start all of them again with '
              f'the same --workdir.', file=sys.stderr, flush=True)
    else:
        traceback.print_exc()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition('\n')[0][:200]
