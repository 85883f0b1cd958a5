"""How long somebody new needs from a clone to a submission, installation included.

    python benchmarks/newcomer.py [--folder=FOLDER] [--python=PYTHON]

Clones this repository into FOLDER (a temporary one by default), makes a virtual environment there,
installs requirements-cpu.txt, makes a competition of scikit-learn's digits as PNG files, trains on
it, writes submission.csv, and scores that. Prints the seconds of each step. `--python` runs the
steps with an interpreter that has the packages, without a new environment. What is committed is
cloned; the programs that JAX compiled before are not used.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 6


def steps(clone: Path, python: str, install: bool) -> list[tuple[str, list[list[str]]]]:
    """The steps in their order: (name, commands); each but the clone runs in the clone."""
    found = [('clone', [['git', 'clone', '--quiet', str(ROOT), str(clone)]])]
    if install:
        found += [('environment', [[sys.executable, '-m', 'venv', '.venv']]),
                  ('installation', [[python, '-m', 'pip', 'install', '--quiet', '-r',
                                     'requirements-cpu.txt']])]
    return found + [
        ('competition', [[python, 'benchmarks/competition.py', 'make', '--source=digits',
                          '--folder=digits']]),
        ('training', [[python, 'main.py', '--config=configs/sketch_cnn.py:csv=digits/train.csv,'
                                          'flips=no', '--workdir=runs/digits']]),
        ('submission', [[python, 'main.py', 'submit', '--workdirs=runs/digits',
                         '--sample=digits/sample_submission.csv', '--images=digits/test',
                         '--out=runs/submission']]),
        ('score', [[python, 'benchmarks/competition.py', 'score',
                    '--submission=runs/submission/submission.csv', '--truth=digits_truth.csv']])]


def run(folder: Path, python: str) -> float:
    """Prints the output of each step and a table of seconds, and returns the seconds together.

    Raises:
        SystemExit: a step failed.
    """
    clone = folder / 'atelier'
    environment = dict(os.environ, XDG_CACHE_HOME=str(folder / 'cache'))
    environment.setdefault('JAX_PLATFORMS', 'cpu')
    taken = []
    for name, commands in steps(clone, python or '.venv/bin/python', not python):
        start = time.perf_counter()
        for command in commands:
            print(f'$ {" ".join(command)}', flush=True)
            code = subprocess.run(command, cwd=folder if name == 'clone' else clone,
                                  env=environment).returncode
            if code:
                raise SystemExit(f'The step {name!r} ended with exit code {code}.')
        taken.append((name, time.perf_counter() - start))
    together = sum(seconds for _, seconds in taken)
    for name, seconds in [*taken, ('together', together)]:
        print(f'{name:12} {seconds:6.1f} s')
    return together


def main(argv: list[str]) -> int:
    """0 if it took less than MINUTES."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, help='an empty or new folder, which is kept')
    parser.add_argument('--python', default='', help='an interpreter that has the packages')
    args = parser.parse_args(argv)
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        return int(run(args.folder.resolve(), args.python) >= 60 * MINUTES)
    with tempfile.TemporaryDirectory() as folder:
        return int(run(Path(folder), args.python) >= 60 * MINUTES)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
