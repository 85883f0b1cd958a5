"""A few labels per class and many pictures without: what do the unlabelled ones add?

    python main.py study --config=configs/studies/consistency.py:folder=PATH \
        --config.data.group_regex='_(\\d+)\\.' --config.split.test_groups=17,18,19,20
    python main.py study --config=configs/studies/consistency.py:size=tiny

    plain         the labelled pictures alone
    fixmatch      and a strong view of an unlabelled one learns the sure answers to its weak view
    mean_teacher  and it learns what the moving average of the weights says of the weak view

Every arm takes as many steps, of as many labelled pictures, by the same recipe (moving average
included); the three seeds draw the labelled pictures, the first weights and the order. Nothing is
chosen: there is no validation split. The arguments are `shots=3` (labels per class), `steps=500`,
`size=28` (pixels), and those of the data. Flips are left out, as for characters; for other pictures
add them to the curriculum and to unlabelled.strong.
"""

from ml_collections import ConfigDict

from configs import common, tiny

WEAK = (dict(kind='rotate', degrees=10), dict(kind='scale', factor=1.15),
        dict(kind='shift', share=0.06))
STRONG = (dict(kind='rotate', degrees=30), dict(kind='scale', factor=1.35, aspect=1.25),
          dict(kind='shear', degrees=20), dict(kind='shift', share=0.12),
          dict(kind='elastic', alpha=25, sigma=5),
          dict(kind='cutout', p=0.5, share=0.4, fill='mean'))


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, shots='3', steps='500', size='28')
    config = common.choose_data(common.get_config(), args)
    config.data.long_tail.per_class = common.number('shots', args['shots'])
    config.curriculum = (dict(transforms=WEAK),)
    config.model = dict(name='small_cnn', width=16)
    config.batch_size = 32
    config.duration = dict(steps=common.number('steps', args['steps']))
    config.split.val = 0.0  # nothing is chosen
    config.optimizer.name = 'muon'
    config.optimizer.momentum = 0.95
    config.schedule.lr = 3e-3
    config.ema.decay = 0.99
    config.checkpoint.every = dict(percent=100)
    config.unlabelled.batch_size = 48
    config.unlabelled.strong = STRONG
    config.log.tensorboard = False
    config.report.heat_maps = False
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    return {'plain': {},
            'fixmatch': {'unlabelled.kind': 'fixmatch', 'unlabelled.threshold': 0.8},
            'mean_teacher': {'unlabelled.kind': 'mean_teacher',
                             'unlabelled.ramp': dict(percent=30)}}
