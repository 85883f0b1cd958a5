"""Checkpoints: what was saved comes back, and damage is never used."""

import gc

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import loader, sources
from input_pipeline.pictures import PreprocessSpec
from train_lib.run_dir import checkpoints, digests
from train_lib.run_dir.checkpoints import Checkpointer, committed_steps, damage, latest_good
from train_lib.runtime.errors import CheckpointError


def state(value=0.0):
    return {'params': {'a': jnp.full((64, 3), value), 'blocks': {0: {'k': jnp.arange(5.0)}}},
            'rest': {}, 'opt_state': (jnp.zeros(2), jnp.int32(3)), 'step': jnp.int32(7)}


def iterator():
    manifest = sources.load_source({'source': 'digits'}).select(np.arange(40))
    stages = loader.curricula.make_stages((), None)
    return loader.train_iterator(manifest, PreprocessSpec(size=8), loader.Course(
        stages=stages, steps=10, seed=0), batch_size=4)


@pytest.fixture
def saved(tmp_path):
    """Steps 1, 2 and 3 of a run whose best was step 1."""
    batches = iterator()
    checkpointer = Checkpointer(tmp_path / 'checkpoints', keep=2)
    for step in (1, 2, 3):
        next(batches)
        checkpointer.save(step, state(step), batches, {'best_step': 1, 'step': step}, {1})
    checkpointer.close()
    batches.close()
    return tmp_path / 'checkpoints'


def test_everything_comes_back(saved):
    batches = iterator()
    found, host = checkpoints.restore(saved / '2', state(), batches)
    assert (found['params']['a'] == 2).all()
    np.testing.assert_array_equal(found['params']['blocks'][0]['k'], np.arange(5.0))
    assert found['opt_state'][1] == 3
    assert host == {'best_step': 1, 'step': 2}
    assert batches.get_state() == {'next_index': 2}
    batches.close()


def test_the_newest_and_the_best_are_kept(tmp_path):
    batches = iterator()
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in range(1, 6):
        checkpointer.save(step, state(step), batches, {}, {2})
    checkpointer.close()
    batches.close()
    assert committed_steps(tmp_path) == [2, 4, 5]
    assert not list(tmp_path.glob('writing-*'))


def test_weights_alone(saved):
    found = checkpoints.read_weights(saved / '3')
    assert set(found) <= {'params', 'rest'}
    assert (found['params']['a'] == 3).all()
    like = {'params': state()['params'], 'rest': {}}
    assert (checkpoints.read_weights(saved / '3', like)['params']['a'] == 3).all()


@pytest.mark.parametrize('seed', range(6))
def test_a_flipped_bit_is_found_and_the_step_before_is_used(saved, seed, caplog):
    rng = np.random.default_rng(seed)
    files = sorted(path for path in (saved / '3').rglob('*')
                   if path.is_file() and path.stat().st_size)
    path = files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    assert latest_good(saved) == saved / '2'
    assert 'step 3 is damaged' in caplog.text
    assert (saved / 'damaged-3-1').is_dir()


@pytest.mark.parametrize('harm', ['truncate', 'delete', 'empty', 'no digests', 'added'])
def test_other_damage_is_found(saved, harm):
    folder = saved / '3'
    victim = max((path for path in folder.rglob('*') if path.is_file()),
                 key=lambda path: path.stat().st_size)
    if harm == 'truncate':
        victim.write_bytes(victim.read_bytes()[:-1])
    elif harm == 'delete':
        victim.unlink()
    elif harm == 'empty':
        for path in folder.rglob('*'):
            if path.is_file():
                path.unlink()
    elif harm == 'no digests':
        (folder / 'digests.json').unlink()
    else:
        (folder / 'more').write_text('x')
    assert damage(folder)
    assert latest_good(saved) == saved / '2'


def test_no_good_checkpoint_is_an_error_and_not_a_fresh_start(saved):
    for step in committed_steps(saved):
        (saved / str(step) / 'digests.json').unlink()
    for _ in range(2):  # the second time they have been set aside already
        with pytest.raises(CheckpointError, match='no good checkpoint'):
            latest_good(saved)


def test_a_newer_format_is_refused(saved, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(digests, 'FORMAT', 99)
        digests.write_digests(saved / '3')
    with pytest.raises(CheckpointError, match='format 99'):
        latest_good(saved)


def test_an_interrupted_save_is_no_checkpoint(saved):
    (saved / '3').rename(saved / 'writing-3')
    assert latest_good(saved) == saved / '2'
    Checkpointer(saved, keep=2).close()
    assert not (saved / 'writing-3').exists()


@pytest.mark.parametrize('killed', [0, 1, 2])
def test_a_step_can_be_saved_again_where_names_cannot_be_exchanged(saved, monkeypatch, killed):
    moved = []

    def rename(source, target):
        if str(target) in (f'{saved}/3', f'{saved}/writing-replaced-3'):  # Orbax renames too
            moved.append(target)
            if len(moved) == killed:
                raise InterruptedError
        move(source, target)

    move, batches = checkpoints.os.rename, iterator()
    monkeypatch.setattr(checkpoints.os, 'rename', rename)
    monkeypatch.setattr(checkpoints, '_exchange', lambda left, right: False)
    checkpointer = Checkpointer(saved, keep=1)
    checkpointer.save(3, state(5), batches, {'best_step': 3})
    if killed:
        with pytest.raises(InterruptedError):
            checkpointer.close()
    else:
        checkpointer.close()
    batches.close()
    monkeypatch.undo()
    assert latest_good(saved).name == '3'
    assert checkpoints.read_host(saved / '3')['best_step'] == (1 if killed else 3)
    assert committed_steps(saved) == [1, 2, 3] if killed else [3]
    Checkpointer(saved, keep=1).close()
    assert not list(saved.glob('writing-*'))


@pytest.mark.parametrize('killed', [False, True])
def test_a_step_can_be_saved_again(saved, monkeypatch, killed):
    batches, checkpointer = iterator(), Checkpointer(saved, keep=1)
    with monkeypatch.context() as patched:
        if killed:  # just after the names were exchanged
            patched.setattr(checkpoints, '_make_durable', lambda _: 1 / 0)
        checkpointer.save(3, state(5), batches, {'best_step': 3})
        if killed:
            with pytest.raises(ZeroDivisionError):
                checkpointer.wait()
            assert committed_steps(saved) == [1, 2, 3]
            assert checkpoints.read_host(saved / 'writing-3')['best_step'] == 1
    if not killed:
        checkpointer.wait()
    checkpointer.close()
    batches.close()
    assert latest_good(saved).name == '3'
    assert checkpoints.read_host(saved / '3')['best_step'] == 3
    Checkpointer(saved, keep=1).close()
    assert not list(saved.glob('writing-*'))


def test_nothing_saved_is_a_fresh_start(tmp_path):
    assert latest_good(tmp_path / 'none') is None


def test_a_failed_save_is_raised(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoints, 'write_digests', fail)
    batches = iterator()
    checkpointer = Checkpointer(tmp_path, keep=2)
    checkpointer.save(1, state(), batches, {})
    with pytest.raises(OSError, match='No space left'):
        checkpointer.close()
    batches.close()
    assert committed_steps(tmp_path) == []


def test_saving_leaves_nothing_in_memory(tmp_path):
    batches = iterator()
    checkpointer = Checkpointer(tmp_path, keep=2)
    objects = []
    for step in range(1, 42):
        checkpointer.save(step, state(step), batches, {}, ())
        checkpointer.wait()
        if step in (11, 41):
            gc.collect()
            objects.append(len(gc.get_objects()))
    checkpointer.close()
    batches.close()
    assert objects[1] - objects[0] < 30
