"""CIFAR-10 with a long tail, ResNet-32, and the published ways to learn from it.

    python main.py --config=configs/cifar_lt.py:folder=cifar10.zip
    python main.py --config=configs/cifar_lt.py:tfds=cifar10,imbalance=50,method=logit_adjustment
    python main.py --config=configs/cifar_lt.py:folder=cifar10.zip,method=crt,from=runs/ce

The data need a training and a test split; images are removed from the training split until it has
a long tail. The recipe is that of Cao et al. (arXiv 1906.07413): SGD, momentum 0.9, L2 2e-4, batch
128, 200 epochs, rate 0.1 divided by 100 at epochs 160 and 180, five epochs of warm-up; padded crop
and flip. Methods:

    ce                cross-entropy, every picture once per epoch
    weights           class weights of inverse frequency
    effective         class weights by the effective number of samples
    balanced          every class equally often
    sqrt              classes in proportion to the square root of their size
    deferred          balanced from 80 % of the run on
    mixup             mixup, alpha 1
    balanced_softmax  logits + log of the counts in the loss
    logit_adjustment  logits + log of the shares in the loss
    posthoc           cross-entropy, logits - log of the shares at the end
    ldam              LDAM, class weights by the effective number from 80 % on
    mixup_adjusted    mixup and logit adjustment in the loss
    crt               the backbone of from=WORKDIR frozen, a new head on balanced classes, a
                      twentieth of the epochs
"""

from ml_collections import ConfigDict

from configs import common

LATE = dict(percent=80)
METHODS = {
    'ce': {},
    'weights': {'loss.class_weights.kind': 'balanced'},
    'effective': {'loss.class_weights.kind': 'effective'},
    'balanced': {'resample.kind': 'balanced'},
    'sqrt': {'resample.kind': 'sqrt'},
    'deferred': {'resample.kind': 'balanced', 'resample.start': LATE},
    'mixup': {'mixing': (dict(kind='mixup', alpha=1.0),)},
    'balanced_softmax': {'loss.name': 'balanced_softmax'},
    'logit_adjustment': {'loss.name': 'logit_adjustment'},
    'posthoc': {'eval.adjust_tau': 1.0},
    'ldam': {'loss.name': 'ldam', 'loss.scale': 1.0, 'loss.class_weights.kind': 'effective',
             'loss.class_weights.start': LATE},
    'mixup_adjusted': {'mixing': (dict(kind='mixup', alpha=1.0),),
                       'loss.name': 'logit_adjustment'},
    'crt': {'resample.kind': 'balanced', 'init.head': 'reset',
            'finetune.table': (('head/.*', {}), ('.*', dict(train=False)))},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, imbalance='100', method='ce', epochs='200', **{'from': ''})
    config = common.choose_data(common.get_config(), args)
    method = common.choose('method', args['method'], METHODS)
    epochs = common.number('epochs', args['epochs'], float)
    if (method == 'crt') != bool(args['from']):
        raise ValueError('from=WORKDIR (a trained method=ce) belongs to method=crt: give both or '
                         'neither.')
    config.data.long_tail.imbalance = common.number('imbalance', args['imbalance'], float)
    config.init['from'] = args['from']
    config.model = dict(name='resnet32')
    config.image.size = 32
    config.image.border = 'black'
    with config.ignore_type():
        config.image.mean = (0.4914, 0.4822, 0.4465)
        config.image.std = (0.2470, 0.2435, 0.2616)
    config.split.val = 0.0  # the published tables train on all images and score the last epoch
    config.curriculum = (dict(transforms=[dict(kind='random_crop', share=1.0, padding=4),
                                          'hflip']),)
    config.duration = dict(epochs=epochs / 20 if method == 'crt' else epochs)
    config.batch_size = 128
    config.optimizer.name = 'sgd'
    config.optimizer.nesterov = False
    config.optimizer.decay = 'coupled'
    config.optimizer.weight_decay = 2e-4
    config.optimizer.clip_norm = 0.0
    config.schedule = dict(config.schedule, name='multi_step', lr=0.1, gamma=0.01,
                           warmup=dict(percent=2.5), at=(dict(percent=80), dict(percent=90)))
    with config.ignore_type():
        config.update_from_flattened_dict(METHODS[method])
    return config
