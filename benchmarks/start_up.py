"""How long until the first training step is done? The first start of a config, and the second.

    python benchmarks/start_up.py [--configs=FILE[:args],...] [--rounds=N] [--config.key=value ...]

Seconds from the start of the process to the log line of its first step, with an empty folder of
compiled programs and with the folder that the first start left (config.compile_cache); also CPU
seconds, which other work on the machine changes less.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = {
    'default': ['--config=configs/common.py'],
    'sketch_vit': ['--config=configs/sketch_vit.py'],
    'resnet18': ['--config=configs/sketch_vit.py', '--config.model=dict(name="resnet18")'],
}


def seconds_to_first_step(flags: list[str], cache: str) -> tuple[float, float]:
    """(wall clock, CPU) seconds of a process from its start to its first step.

    Raises:
        RuntimeError: it ended before that; the message has its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        since = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, 'main.py', *flags, '--config.log.every.steps=1',
             f'--workdir={folder}/run'], cwd=ROOT, env=os.environ | {'XDG_CACHE_HOME': cache},
            stderr=subprocess.PIPE, text=True)
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith('step '):
                break
        wall = time.perf_counter() - since
        process.kill()
        process.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not said or not said[-1].startswith('step '):
            raise RuntimeError(''.join(said))
    return wall, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def main(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--configs', default=','.join(CONFIGS))
    parser.add_argument('--rounds', type=int, default=1, help='how many; the best counts')
    options, overrides = parser.parse_known_args(argv)
    print('config        first s  (CPU s)  second s  (CPU s)  second / first  (CPU)')
    for name in options.configs.split(','):
        flags = [*CONFIGS.get(name, [f'--config={name}']), *overrides]
        starts = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                starts.append([seconds_to_first_step(flags, cache) for _ in range(2)])
        first, second = ([min(column) for column in zip(*which)] for which in zip(*starts))
        print(f'{name:12}  {first[0]:7.2f}  {first[1]:7.2f}  {second[0]:8.2f}  {second[1]:7.2f}  '
              f'{second[0] / first[0]:14.2f}  {second[1] / first[1]:5.2f}', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
