"""EVA-02 L, frozen, and heads on its features: sketches of 500 classes, five folds that vote.

    python main.py --config=configs/sketch_eva_probe.py:folder=PATH

The features of 20 augmented views of every picture are computed once (for 15,021 pictures 0.3
million forward passes at 448 px: use a GPU). Then two kinds of heads x three learning rates x five
folds train together within minutes. Later runs with other heads, rates or schedules reuse the
features. The weights come from Hugging Face; without a network give pretrained=FILE.safetensors.

Arguments besides those of the data: `model=NAME`, `pretrained=...` (see config.init), and
`size=PIXELS`, a multiple of the model's patch size. A quick trial on a CPU, with random weights:

    python main.py \\
        --config=configs/sketch_eva_probe.py:model=eva02_tiny_patch14_224,pretrained=,size=56
"""

from ml_collections import ConfigDict

from configs import common, sketch_eva


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, model='eva02_large_patch14_448', pretrained='default', size='448')
    config = common.choose_data(common.get_config(), args)
    config.model.name = args['model']
    config.init.pretrained = args['pretrained']
    config.image.size = common.number('size', args['size'])
    config.image.border = 'white'
    config.precision = 'bfloat16' if args['pretrained'] else 'float32'
    config.split.kind = 'kfold'
    config.split.fold = 'all'
    config.duration = dict(epochs=20)
    config.curriculum = sketch_eva.STAGED
    config.probe.views = 20
    config.probe.heads = (
        dict(name='linear', head='linear'),
        dict(name='mlp3', head='mlp', head_hidden=1024, head_act='relu', head_dropout=0.1),
    )
    config.probe.lr = (3e-3, 1e-3, 3e-4)
    config.schedule.name = 'constant'  # the stages lower the rate
    return config
