"""Flat minima: sharpness-aware gradients and averages of weights, each against the plain recipe.

    python main.py study --config=configs/studies/flat_minima.py:folder=omniglot_sketches.zip \\
        --config.data.group_regex='_(\\d+)\\.' --config.split.test_groups=17,18,19,20
    python main.py study --config=configs/studies/flat_minima.py:size=tiny

All arms see the same pictures for the same number of epochs; `twice as long` is what the second
gradient of SAM costs, spent on epochs. Nothing is chosen: the last weights are scored. The values
are those of the papers, or common ones, and were not tuned. `arms=few` has plain, SAM and SWA
alone; `size=28` is in pixels, `epochs=30`. The other arguments are those of the data. Letters are
turned, moved and scaled, not mirrored.
"""

from ml_collections import ConfigDict

from configs import common, tiny

WARP = (dict(kind='rotate', degrees=10), dict(kind='scale', factor=1.15),
        dict(kind='shift', share=0.08))


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, size='28', epochs='30', arms='all')
    config = common.choose_data(common.get_config(), args)
    common.choose('arms', args['arms'], ('all', 'few'))
    config.model = dict(name='small_cnn', width=16, stages=3)
    config.curriculum = (dict(transforms=list(WARP)),)
    config.split.val = 0.0
    config.duration = dict(epochs=common.number('epochs', args['epochs']))
    config.schedule.lr = 1e-2
    config.log.tensorboard = False
    config.report.heat_maps = False
    config.checkpoint.every = dict(percent=50)
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    small = tiny.is_tiny(arg)
    sam = {'sharpness.kind': 'sam', 'sharpness.rho': 0.05}
    swa = {'swa.start': dict(percent=75), 'swa.every': dict(steps=1) if small else dict(epochs=1)}
    few = {'plain': {}, 'sam': sam, 'swa': swa}
    if common.split_arg(arg, 'arms')[0].get('arms') == 'few':
        return few
    longer = {} if small else {'twice as long': {
        'duration': dict(epochs=2 * config.duration.epochs)}}
    return few | longer | {
        'sam, every other step': sam | {'sharpness.every': 2},
        'asam': {'sharpness.kind': 'asam', 'sharpness.rho': 0.5},
        'swa, cyclic': swa | {'swa.schedule': 'cyclic'},
        'lookahead': {'lookahead.every': 5},
        'schedule-free': {'schedule_free.beta': 0.9, 'schedule_free.statistics': 2048,
                          'optimizer.b1': 0.0, 'schedule.name': 'constant'},
    }
