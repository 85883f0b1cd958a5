"""Mask, gender and age: one product class or one branch per label, and what helps rare ages.

    python main.py curate --config=configs/people_multihead.py:csv=train.csv,images=PATH \\
        --workdir=runs/people_borders
    python main.py --config=configs/people_multihead.py:csv=train.csv,images=PATH \\
        --workdir=runs/people_a
    python main.py study --config=configs/studies/people_models.py:csv=train.csv,images=PATH
    python main.py study --config=configs/studies/people_models.py:size=tiny

The base config and its arguments are those of configs/people_multihead.py, with model=a. The metric
is the F1 of all labels as one class, however they were learnt. These arguments add arms:

    from=runs/people_a      the frozen backbone of a under the branches of c
    decisions=FILE          without the ages at a border: runs/people_borders/decisions.csv
    faces=PACKED            the same pictures packed with --config.pack.preprocess=face,background
"""

from ml_collections import ConfigDict

from configs import common, people_multihead


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    own, rest = common.split_arg(arg, 'from', 'decisions', 'faces')
    config = people_multihead.get_config(rest)
    config.study.metric = 'test.f1_macro_product'
    # Read by study(); all arms but the one that each is for reset it.
    config.init['from'] = own.get('from', '')
    config.data.decisions = (own['decisions'],) if 'decisions' in own else ()
    config.data.packed = own.get('faces', config.data.packed)
    return config


def study(config: ConfigDict) -> dict[str, dict]:
    """The arms, by name."""
    labels = people_multihead.labels_of(config.data.source)
    ways = people_multihead.ways(tuple(labels))

    def mixed(kind):
        return {'mixing': people_multihead.mixing(kind, labels, product=True)}

    own = {'init.from': '', 'data.decisions': ()}
    pretrained = {'init.pretrained': config.init.pretrained}
    arms = {
        'a': ways['a'],
        'b': ways['b'],
        'c': ways['c'],
        'a, rare mixed': ways['a'] | mixed('rare'),
        'a, halves': ways['a'] | mixed('halves'),
        'a, cross-entropy': ways['a'] | {'loss.name': 'cross_entropy'},
    }
    if config.init['from']:
        arms['a, then c'] = ways['ac'] | {'init.from': config.init['from'], 'init.pretrained': ''}
    if config.data.decisions:
        arms['a, no borders'] = ways['a'] | {'data.decisions': config.data.decisions}
    if config.data.packed and config.data.source != 'packed':
        arms['a, faces'] = ways['a'] | {'data.source': 'packed', 'data.separate': ()}
    return {name: own | pretrained | changes for name, changes in arms.items()}
