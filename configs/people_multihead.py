"""Mask, gender and age of faces: one product class, or one branch per label (EfficientNet-B4).

    python main.py --config=configs/people_multihead.py:csv=train.csv,images=PATH,model=a \\
        --workdir=runs/people_a
    python main.py --config=configs/people_multihead.py:csv=train.csv,images=PATH,from=runs/people_a
    python main.py vote --config=configs/vote/people.py:members=runs/people*

    model=a     one linear head over the product of the labels (3 x 2 x 3 = 18 classes; default)
    model=b     one shallow branch of blocks per label
    model=c     one deep branch per label
    model=ac    the backbone of a trained `a` (from=WORKDIR), frozen, with the deep branches of `c`;
                the default with from=
    mixing=none         (default)
    mixing=rare         mixup of the rarest label's pictures with each other (age: old)
    mixing=halves       the left half of one face and the right half of another
    heads=mask+gender+age   the labels, in this order; mixing=rare expects these
    pretrained=, size=      other weights of timm, or none; pixels, or tiny: a quick trial on a CPU

The CSV has the columns mask (worn, wrong, none), gender (female, male) and age (young, middle,
old), and a column `group` that names the person, so that each person stays on one side of the
split. Ages near a border of `age` are doubtful labels. If the CSV has a column `years`,

    python main.py curate --config=configs/people_multihead.py:csv=train.csv,images=PATH \\
        --workdir=runs/people_borders

decides to leave the ages 57 to 59 out; train with these decisions by config.data.decisions. Faces
are cut out once, when the data are packed: `python main.py pack ...
--config.pack.preprocess=face,background --config.pack.quality=95`.

Without a CSV the labels are those of the built-in doodles: class and tool.
"""

import itertools

from ml_collections import ConfigDict

from configs import common, tiny

MODELS = {'a': 'linear', 'b': 'shallow', 'c': 'deep', 'ac': 'deep'}
FACES = {'mask': ('worn', 'wrong', 'none'), 'gender': ('female', 'male'),
         'age': ('young', 'middle', 'old')}
DOODLES = {'class': ('house', 'tree', 'fish', 'cup'),
           'tool': ('pencil', 'pen', 'brush', 'marker')}


def labels_of(source: str) -> dict[str, tuple[str, ...]]:
    """The classes of each label, {head: names}, for a config.data.source."""
    return {'doodles': DOODLES, 'digits': {'class': ()}}.get(source, FACES)


def mixing(kind: str, labels: dict[str, tuple[str, ...]], product: bool) -> tuple[dict, ...]:
    """The value of config.mixing for a kind.

    Args:
        kind: 'none', 'rare' (the last class of the last head) or 'halves'.
        labels: {head: its classes}.
        product: whether the heads are combined into one, with classes such as 'x/y/z'.
    """
    head, rare = list(labels)[-1], list(labels.values())[-1][-1:]
    if product:
        head, rare = '/'.join(labels), tuple(
            '/'.join(names) for names in itertools.product(*labels.values())
            if names[-1:] == rare)
    choices = {'none': (),
               'rare': (dict(kind='mixup', alpha=0.4, per='example', head=head, classes=rare),),
               'halves': (dict(kind='halves', p=0.5),)}
    return choices[common.choose('mixing', kind, choices)]


def ways(heads: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """The settings in which the models differ: {model: {dotted.path: value}}."""
    frozen = (('heads?/.*', {}), ('.*', dict(train=False)))
    return {name: {
        'data.combine': heads if name == 'a' and len(heads) > 1 else (),
        'model.head': head,
        'finetune.table': frozen if name == 'ac' else (),
    } for name, head in MODELS.items()}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, model='', mixing='none', heads='', pretrained='default',
                            size='224', **{'from': ''})
    config = common.choose_data(common.get_config(), args)
    kind = common.choose('model', args['model'] or ('ac' if args['from'] else 'a'), MODELS)
    if (kind == 'ac') != bool(args['from']):
        raise ValueError('from=WORKDIR (a trained model=a) belongs to model=ac: give both or '
                         'neither.')
    labels = labels_of(config.data.source)
    heads = tuple(args['heads'].split('+')) if args['heads'] else tuple(labels)
    config.data.doodles.classes = len(DOODLES['class'])
    if config.data.source == 'doodles':
        config.data.doodles.heads = heads
    elif config.data.source == 'csv':
        config.data.columns.labels = ','.join(heads)
    elif config.data.source == 'folder' and len(heads) > 1:
        config.data.separate = heads
    config.model = dict(name='efficientnet_b4', head_act='silu', head_dropout=0.2, drop_path=0.2)
    config.init['from'] = args['from']
    config.init.pretrained = '' if args['from'] else args['pretrained']
    config.update_from_flattened_dict(ways(heads)[kind])
    config.mixing = mixing(args['mixing'], labels, kind == 'a' and len(heads) > 1)
    config.curate.detectors = ('borders',)
    config.curate.borders = (dict(column='years', between=(57, 59), action='drop'),)
    config.curriculum = (dict(transforms=['hflip', dict(kind='rotate', degrees=10),
                                          dict(kind='shift', share=0.05)]),)
    config.duration = dict(epochs=15)
    config.batch_size = 32
    config.loss.name = 'focal'
    config.optimizer.name = 'adam'
    config.optimizer.weight_decay = 0.0
    config.schedule.name = 'constant'
    config.schedule.lr = 1e-4 if config.init.pretrained or args['from'] else 1e-3
    config.eval.metric = 'loss'
    with config.ignore_type():
        config.schedule.plateau.patience = dict(epochs=2)
    if args['size'] == 'tiny':
        return tiny.make_tiny(config, head=MODELS[kind])
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config
