"""Sketches of 500 classes: EVA-02 L at 448 px, a curriculum, five folds that vote.

    python main.py --config=configs/sketch_eva.py:folder=PATH --workdir=runs/eva_curriculum
    python main.py --config=configs/sketch_eva.py:folder=PATH,head=linear,curriculum=none \\
        --workdir=runs/eva_linear
    python main.py vote --config=configs/vote/sketch.py:runs=runs

Arguments besides those of the data:

    head=mlp            Linear-act-Linear (default), or linear
    train=head          the backbone stays frozen (default); lora: adapters in its attention and
                        MLPs train too; all: everything, each layer slower than the one above
    curriculum=staged   5 epochs unchanged, 5 flipped and rotated by up to 10 degrees, 10 flipped,
                        rotated by up to 15 degrees and distorted; the rate is cut at each stage
                        (default); none
    model=, pretrained= other weights (see config.init)
    size=448            pixels, a multiple of the model's patch size; tiny: a quick trial on a CPU

With a frozen backbone, configs/sketch_eva_probe.py reaches the same heads sooner, because it
computes the features of each view only once. Copies across folds flatter the out-of-fold score:
find them first (`python main.py curate`), and give the decisions by config.data.decisions.
"""

from ml_collections import ConfigDict

from configs import common, tiny

FLIPS = ['hflip', 'vflip']
BEND = [dict(kind='elastic', alpha=30, sigma=4), dict(kind='grid_distortion', steps=4, limit=0.2)]
EASY = [*FLIPS, dict(kind='rotate', degrees=10)]
HARD = [*FLIPS, dict(kind='rotate', degrees=15), *BEND]
# The pictures get harder and the learning rate lower at epochs 5 and 10 of 20.
STAGED = (dict(until=dict(percent=25), transforms=[]),
          dict(until=dict(percent=50), transforms=EASY, lr_scale=0.3),
          dict(transforms=HARD, lr_scale=0.1))
CURRICULA = {'staged': STAGED, 'none': ()}
HEADS = {'linear': dict(head='linear'),
         'mlp': dict(head='mlp', head_hidden=1024, head_act='relu', head_dropout=0.1)}
TRAINS = {
    'head': {'finetune.table': (('head/.*', {}), ('.*', dict(train=False)))},
    'lora': {'finetune.lora.rank': 8},
    'all': {'finetune.layer_decay': 0.8, 'optimizer.weight_decay': 0.05, 'schedule.lr': 5e-5},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, head='mlp', train='head', curriculum='staged', size='448',
                            model='eva02_large_patch14_448', pretrained='default')
    config = common.choose_data(common.get_config(), args)
    head = HEADS[common.choose('head', args['head'], HEADS)]
    config.model = dict(name=args['model'], **head)
    config.init.pretrained = args['pretrained']
    config.image.border = 'white'
    config.precision = 'bfloat16'
    config.split.kind = 'kfold'
    config.split.fold = 'all'
    config.duration = dict(epochs=20)
    config.curriculum = CURRICULA[common.choose('curriculum', args['curriculum'], CURRICULA)]
    config.optimizer.weight_decay = 0.01
    config.schedule.name = 'constant'  # the stages lower the rate
    config.schedule.lr = 1e-3
    config.update_from_flattened_dict(TRAINS[common.choose('train', args['train'], TRAINS)])
    if args['size'] == 'tiny':
        return tiny.make_tiny(config, name='eva02_tiny_patch14_224', depth=2, patch_size=8, **head)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config
