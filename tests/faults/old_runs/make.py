"""Makes a run as this version writes it, stopped half way, for later versions to go on with.

    python tests/faults/old_runs/make.py tests/faults/old_runs/format_<n>

Make one when the format of checkpoints or of config.json changes, and never touch an older one.
`finished.npz` is what the run predicted of its test pictures when it was not stopped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SETTINGS = [
    '--config=configs/sketch_vit.py:data=digits', '--config.image.size=8',
    '--config.model=dict(name="small_cnn", width=4, stages=1, drop_rate=0.2)',
    '--config.duration.steps=8', '--config.batch_size=16', '--config.schedule.lr=0.05',
    '--config.log.every.steps=2', '--config.eval.every.steps=4',
    '--config.checkpoint.every.steps=4', '--config.log.tensorboard=false',
    '--config.ema.decay=0.9', '--config.curriculum=()',
    '--config.finetune.table=[("stages/.*", dict(train=False)), (".*", dict())]',
    '--config.schedule.plateau.patience=dict(epochs=5)', '--config.resample.kind=balanced',
    '--config.data.long_tail.largest=10', '--config.split.val=0.03', '--config.split.test=0.02']


def make(folder: Path) -> None:
    """Trains eight steps, and leaves what a run has that was killed after the fourth."""
    made = folder.with_name(folder.name + '-whole')
    subprocess.run([sys.executable, 'main.py', *SETTINGS, '--config.compile_cache=no',
                    f'--workdir={made}'], cwd=ROOT, check=True,
                   env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    folder.mkdir()
    for name in ('config.json', 'split.csv', 'metrics.jsonl'):
        shutil.copy(made / name, folder)
    for name in ('4', 'frozen'):
        shutil.copytree(made / 'checkpoints' / name, folder / 'checkpoints' / name)
    shutil.copy(made / 'predictions/test.npz', folder / 'finished.npz')
    shutil.rmtree(made)


if __name__ == '__main__':
    make(Path(sys.argv[1]).absolute())
