"""A Slurm of two nodes on this machine: munged, slurmctld and two slurmd in a temporary folder.

Each slurmd, and so every job on its node, has a name of its own for the machine (n1, n2) and a file
/etc/hosts of its own, by namespaces of Linux; nothing outside the folder changes. The nodes are one
kernel and share all disks, as the nodes of a cluster share some.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODES = ('n1', 'n2')
PROGRAMS = ('munged', 'munge', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'scancel', 'unshare')
# Compiling fast matters more here than running fast.
XLA = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
CONFIG = '''
ClusterName=atelier
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=240
PartitionName=urgent Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF
'''


def why_not() -> str:
    """Why there can be no cluster here; '' if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f'{", ".join(missing)} not installed (apt-get install slurm-wlm munge)'
    if os.getuid():
        return 'needs root, to give each node a name of its own'
    alone = subprocess.run(['unshare', '--mount', '--uts', 'true'], capture_output=True)
    return '' if alone.returncode == 0 else 'unshare is not permitted here'


class Cluster:
    """Start it, run its commands with `environment`, stop it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith('SLURM')} | {
            'SLURM_CONF': str(folder / 'slurm.conf'), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': XLA,
            'PYTHON': sys.executable}
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        for name in ('state', *(f'spool-{node}' for node in NODES)):
            (self.folder / name).mkdir()
        (self.folder / 'key').write_bytes(os.urandom(1024))
        (self.folder / 'key').chmod(0o600)
        (self.folder / 'hosts').write_text(f'127.0.0.1 localhost {" ".join(NODES)}\n')
        (self.folder / 'slurm.conf').write_text(CONFIG.format(folder=self.folder, ports=_ports(3)))
        subprocess.run(
            ['munged', '--force', f'--key-file={self.folder}/key',
             f'--socket={self.folder}/munge.socket', f'--pid-file={self.folder}/munged.pid',
             f'--log-file={self.folder}/munged.log', f'--seed-file={self.folder}/seed'], check=True)
        self._daemon('slurmctld', '-D')
        for node in NODES:
            self._daemon('unshare', '--mount', '--uts', 'sh', '-c',
                         f'mount --bind {self.folder}/hosts /etc/hosts && hostname {node} && '
                         f'exec slurmd -D -N {node}')
        wait_for(lambda: self.call('sinfo', '-h', '-o', '%T').split() == ['idle'], 60)

    def _daemon(self, *command: str) -> None:
        with open(self.folder / 'daemons.log', 'a') as file:
            self._daemons.append(subprocess.Popen(command, stdout=file, stderr=file,
                                                  env=self.environment))

    def stop(self) -> list[str]:
        """Ends all jobs and daemons. Returns the commands of processes that did not end."""
        self.call('scancel', '--user=root')
        try:
            wait_for(lambda: not self.call('squeue', '-h'), 120)
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in self._daemons:
                daemon.wait(30)
            pid = int((self.folder / 'munged.pid').read_text())
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not Path(f'/proc/{pid}').exists(), 30)
            left = self.processes()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        return list(left.values())

    def call(self, *command: str) -> str:
        """The output of a command of Slurm, which has to succeed unless nothing runs yet."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True,
                              timeout=60).stdout.strip()

    def srun(self, *command: str, log: Path, options=('-N2', '-n2')) -> subprocess.Popen:
        """Starts a job of two processes, one per node."""
        with open(log, 'w') as file:
            return subprocess.Popen(
                ['srun', '--label', *options, sys.executable, *command], cwd=ROOT, stdout=file,
                stderr=file, env=self.environment)

    def sbatch(self, *command: str, **settings: str | Path) -> str:
        """Submits a script; returns the number of the job.

        Args:
            command: options, script, arguments.
            settings: `cwd`, where it runs.
        """
        done = subprocess.run(['sbatch', '--parsable', *command], capture_output=True, text=True,
                              env=self.environment, cwd=settings.get('cwd', ROOT))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: {JobState: RUNNING, Restarts: 1, ...}"""
        words = self.call('scontrol', '--oneliner', 'show', 'job', job).split()
        return dict(word.split('=', 1) for word in words if '=' in word)

    def wait_until(self, job: str, *states: str, seconds: float = 400) -> None:
        wait_for(lambda: self.state(job).get('JobState') in states, seconds,
                 lambda: f'{self.state(job)}')

    def begin_now(self, job: str) -> None:
        """Slurm waits two minutes before a requeued job begins again; the tests wait for three
        seconds, because a job that begins in the second in which it was requeued is refused
        ("Job credential revoked")."""
        wait_for(lambda: self.state(job).get('Reason') == 'BeginTime', 400,
                 lambda: f'{self.state(job)}')
        time.sleep(3)
        self.call('scontrol', 'update', f'JobId={job}', 'StartTime=now')
        wait_for(lambda: self.state(job)['JobState'] != 'PENDING', 120)

    def processes(self, *words: str) -> dict[int, str]:
        """{process: its command} of everything that runs in this cluster, if `words` are among
        its environment and command."""
        found = {}
        for path in Path('/proc').glob('[0-9]*'):
            try:
                environment = (path / 'environ').read_bytes().decode(errors='replace').split('\0')
                command = (path / 'cmdline').read_bytes().decode(errors='replace').split('\0')
                state = (path / 'stat').read_text().rpartition(')')[2].split()[0]
            except (OSError, IndexError):
                continue  # it has just ended
            if f'SLURM_CONF={self.folder}/slurm.conf' in environment and state not in 'ZX' and set(
                    words) <= {*environment, *command}:
                found[int(path.name)] = ' '.join(command)
        return found


def _ports(count: int) -> list[int]:
    """Free ones, below those that the system gives out by itself."""
    found = [socket.socket() for _ in range(count)]
    for one in found:
        one.bind(('localhost', 0))
    numbers = [one.getsockname()[1] for one in found]
    for one in found:
        one.close()
    return numbers


def wait_for(condition: Callable[[], bool], seconds: float, what: Callable[[], str] = lambda: ''
             ) -> None:
    """Returns once the condition holds, and fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)
