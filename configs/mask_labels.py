"""Mask, gender and age of faces: one product class, or a branch a label (EfficientNet-B4).

    python main.py --config=configs/mask_labels.py:csv=train.csv,images=PATH,model=b

`model=a`  one linear head over the product of the labels (3 x 2 x 3 = 18 classes)
`model=b`  a shallow branch of blocks a label
`model=c`  a deep branch a label
`model=ac` the backbone of a trained `a` (from=WORKDIR), frozen, and the deep branches of `c`

The CSV has a column a label (heads=mask+gender+age names them, in this order) and one for the
person, which keeps each person on one side. `pretrained=` starts from other weights of timm, or
from none. A look at the way of it on a CPU, with figure and tool of the built-in doodles:

    python main.py --config=configs/mask_labels.py:heads=class+tool,pretrained=,size=64,model=b
"""

from ml_collections import ConfigDict

from configs import common

MODELS = {'a': 'linear', 'b': 'shallow', 'c': 'deep', 'ac': 'deep'}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is what stands after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, model='b', heads='mask+gender+age', pretrained='default',
                            size='224', **{'from': ''})
    config = common.choose_data(common.get_config(), args)
    kind = common.choose('model', args['model'], MODELS)
    heads = tuple(args['heads'].split('+'))
    if (kind == 'ac') != bool(args['from']):
        raise ValueError('from=WORKDIR (a trained model=a) belongs to model=ac, and to it alone.')
    if config.data.source == 'doodles':
        config.data.doodles.heads = heads
    elif config.data.source == 'csv':
        config.data.columns.labels = ','.join(heads)
    if kind == 'a':
        config.data.combine = heads
    config.model = dict(name='efficientnet_b4', head=MODELS[kind], head_act='silu',
                        head_dropout=0.2, drop_path=0.2 if kind != 'ac' else 0.0)
    if kind == 'ac':
        config.init['from'] = args['from']
        config.finetune.table = (('heads?/.*', {}), ('.*', dict(train=False)))
    else:
        config.init.pretrained = args['pretrained']
    config.image.size = int(args['size'])
    config.curriculum = (dict(transforms=['hflip', dict(kind='rotate', degrees=10),
                                          dict(kind='shift', share=0.05)]),)
    config.duration = dict(epochs=15)
    config.batch_size = 32
    config.schedule.lr = 1e-4 if config.init.pretrained else 1e-3
    config.eval.metric = 'loss'
    return config
