"""The training step, compiled by the real compilers for GPUs and TPUs that are not here.

    pip install -r requirements-plan.txt
    pytest -m slow tests/train_lib/planning/test_compiled_steps.py

Lowering shows what a program asks for; here is what the compiler made of it.
"""

import functools
import re

import pytest

from configs import common
from models.target import Target, target_of
from train_lib.planning.absent_devices import missing, target_devices
from train_lib.planning.step_plan import abstract_job
from train_lib.planning.targets import read_target
from train_lib.runtime.sharding import make_mesh
from train_lib.training.data import load_data, split_data
from train_lib.training.setup import lower_step

pytestmark = pytest.mark.slow
BATCH = 64
VIT, RESNET = 'vit_base_patch16_224', 'resnet50'
_CALL = re.compile(r'%(\S+) = (.*) custom-call\(.*custom_call_target="(\S+?)"')


def known(name):
    """A target of config.plan; the test is skipped without its compiler."""
    target = read_target(name)
    if missing(target):
        pytest.skip(f'{missing(target)} is not installed: pip install -r requirements-plan.txt')
    return target


@functools.cache
def compiled(target, name, size, settings=(), devices=1) -> str:
    """The optimised program of a training step in bfloat16."""
    target = known(target)
    config = common.get_config()
    config.data.doodles.update(classes=4, per_class=12, writers=8)
    config.image.size, config.precision, config.batch_size = size, 'bfloat16', BATCH
    config.model, config.mesh.data = dict(name=name, **dict(settings)), devices
    data = split_data(config, load_data(config))
    job = abstract_job(config, data, make_mesh(config.mesh, target_devices(target)))
    lowered = lower_step(job.run, job.state, data.parts)
    return lowered.compile(target.compiler_options).as_text()


def calls(text, name) -> dict[str, list[str]]:
    """{target: [results]} of the calls whose targets start so."""
    found: dict[str, list[str]] = {}
    for _, result, target in _CALL.findall(text):
        if target.startswith(name):
            found.setdefault(target, []).append(result)
    return found


@pytest.mark.parametrize(('name', 'expected'), [
    ('h100:1x1x8', Target('cuda', '9.0')), ('a100:1x1x8', Target('cuda', '8.0')),
    ('v5e:2x2', Target('tpu'))])
def test_absent_devices_say_what_they_are(name, expected):
    assert {target_of(device) for device in target_devices(known(name))} == {expected}


@pytest.mark.parametrize('target', ['h100:1x1x8', 'a100:1x1x8'])
def test_a_vit_on_gpus_has_flash_attention_on_the_examples_of_its_device(target):
    """197 tokens, padded by one; once in the loop over the blocks, and once in that back."""
    found = calls(compiled(target, VIT, 224, (('scan', True),), 8), '__cudnn$fmha')
    assert {name: len(results) for name, results in found.items()} == {
        '__cudnn$fmhaSoftmax': 1, '__cudnn$fmhaSoftmaxBackward': 1}
    for results, in found.values():
        assert f'bf16[{BATCH // 8},12,198,64]' in results


def test_a_resnet_on_a_gpu_convolves_in_bfloat16_with_the_channels_last():
    text = compiled('h100:1x1x1', RESNET, 64)
    found = calls(text, '__cudnn$conv')
    # 20 are not matrix products. All but the first have a gradient of their images, some of which
    # are computed by a forward convolution.
    assert len(found['__cudnn$convForward']) >= 20
    assert sum(map(len, found.values())) == 3 * 20 - 1
    assert {result.split('[')[0] for results in found.values() for result in results} == {'(bf16'}
    assert set(re.findall(r'dim_labels=(\S+?),', text)) == {'b01f_o01i->b01f'}
    assert not re.search(r' convolution\(', text)  # none that cuDNN did not take


def test_a_vit_on_tpus_has_the_attention_of_xla():
    text = compiled('v5e:2x2', VIT, 224, (('scan', True), ('depth', 2)), 4)
    assert 'cudnn' not in text and 'flash' not in text
    assert re.search(r'bf16\[16,12,197,197\]|bf16\[16,197,12,64\]|bf16\[16,12,197,64\]', text)
