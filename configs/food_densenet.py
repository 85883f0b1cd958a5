"""Photographs of dishes: DenseNet-121, fine-tuned.

    python main.py --config=configs/food_densenet.py:folder=PATH --workdir=runs/food
    python main.py --config=configs/food_densenet.py:folder=OTHER,from=runs/food

The first command fine-tunes from ImageNet: random crops, rotated and flipped; NAdam with both betas
at 0.999, a cosine schedule, L2 in the gradient. The second starts from those weights and trains on
another, unbalanced set of dishes: a new head, Adam, no resampling. For two classes that the
confusion matrix of report.html shows to be confused, train an expert: give a folder of those two
classes, with from=. The page also has the class activation maps and the best and worst classes.

Arguments besides those of the data: `model=NAME` and `pretrained=...` (see config.init); `size=224`
pixels, or `tiny`, a quick trial on a CPU; `from=WORKDIR`. The studies configs/studies/food_*.py
change one thing at a time.
"""

from ml_collections import ConfigDict

from configs import common, tiny

CROP = dict(kind='random_crop', share=0.875)
AUGMENTATION = [CROP, dict(kind='rotate', degrees=15), 'hflip']


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, model='densenet121', pretrained='default', size='224',
                            **{'from': ''})
    config = common.choose_data(common.get_config(), args)
    config.model = dict(name=args['model'])
    config.init.pretrained = '' if args['from'] else args['pretrained']
    config.init['from'] = args['from']
    config.data.unreadable = 'drop'
    config.curriculum = (dict(transforms=AUGMENTATION),)
    config.duration = dict(epochs=20)
    config.batch_size = 32
    config.optimizer.name = 'adam' if args['from'] else 'nadam'
    if not args['from']:
        config.optimizer.b1 = config.optimizer.b2 = 0.999
    config.optimizer.decay = 'coupled'
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    config.schedule.lr = 1e-4
    if args['size'] == 'tiny':
        config.data.doodles.imbalance = 4.0
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config
