"""Every knob of a run, once, with its default and a comment; docs/config.md is made from them.

An experiment starts from `get_config()` and changes what it needs; the command line changes the
rest: `--config.schedule.lr=3e-4`. A duration is written in any unit: `dict(epochs=30)`,
`dict(steps=1000)`, `dict(examples=50_000)` or `dict(percent=10)` (of the whole run). An override
may change the unit: `--config.duration.steps=100`. A share is a number from 0 to 1.

To add a knob, add its line here, or to sections/other_verbs.py if only another verb than train
reads it, or to sections/without_labels.py if it is about pictures without labels or a teacher, and
run `python docs/make_config_md.py`.
"""

from ml_collections import ConfigDict, FieldReference

# Configs use these as common.parse_arg, ...
from configs.arguments import choose, choose_data, number, parse_arg, split_arg
from configs.sections.devices import add_device_sections
from configs.sections.flat_minima import add_flat_minima_sections
from configs.sections.other_verbs import add_verb_sections
from configs.sections.without_labels import add_unlabelled_sections

__all__ = ['choose', 'choose_data', 'get_config', 'number', 'parse_arg', 'split_arg']


def _anything(default) -> FieldReference:
    """A field whose value may have another type than its default."""
    return FieldReference(default, field_type=object)


def get_config() -> ConfigDict:
    """The defaults. Unknown keys are refused, here and on the command line."""
    config = ConfigDict()
    config.seed = 0  # for weights, order, augmentation, dropout and splits; 0 or more
    config.duration = dict(epochs=30)  # length of the training, a duration
    config.batch_size = 64  # examples per step, over all devices
    # A batch is computed in so many parts, one after another, for one update: less memory, the
    # same gradient; only BatchNorm sees one part at a time.
    config.accumulate = 1
    # What blocks under model.scan keep for the gradient: 'products': results of matrix products and
    # of attention, from which the rest is computed again | 'all', as in older versions, whose runs
    # keep it. model.remat keeps nothing of a block.
    config.saved_activations = 'products'
    config.precision = 'float32'  # of the computation: 'float32' | 'bfloat16'; weights are float32

    config.data = dict(  # where the pictures and labels come from
        source='doodles',  # 'doodles' | 'digits' | 'folder' | 'csv' | 'tfds' | 'packed'
        folder='',  # source=folder: PATH/<class>/**/image.*, or a .zip of such a folder
        csv='',  # source=csv: the table, CSV or Parquet; also a saved manifest
        images='',  # source=csv: folder or .zip that its paths are relative to ('': the CSV's own)
        tfds='',  # source=tfds: name of a data set of TensorFlow Datasets
        tfds_dir='',  # source=tfds: folder of the data sets ('': ~/tensorflow_datasets)
        tfds_splits=(),  # source=tfds: which of its splits to read ((): all)
        packed='',  # source=packed: folder that `main.py pack` wrote
        allow_outside=False,  # source=folder, csv: follow paths and links that leave the folder
        columns=dict(  # column names of source=csv, tfds ('': guessed from common names)
            id='',  # unique name of the picture ('': its path)
            image='',  # path of the picture
            # Label column; several, separated by commas, make several heads. 'tags=sea+ship' or
            # 'tags=tag_*': a multi-label head whose columns hold 1 where their class applies.
            labels='',
            group='',  # person, drawer or scene: never on two sides of a split
            weight='',  # weight of the example in the loss, 0 or more
            split='',  # 'train', 'val' or 'test'
        ),
        # The allowed class names, in order, of several heads {head: names} ((): those that occur,
        # sorted).
        classes=(),
        # Heads whose classes have an order, as `classes` or numbers have it: scores then say how
        # far predictions are off. Heads of model.head_order have one too.
        ordered=(),
        # source=csv: heads with several labels per picture, as lists in a cell or as several rows
        # of a picture ((): none).
        multi_label=(),
        label_separator='|',  # between the labels of a cell, there and in what is written
        rules=2,  # how sources read data: 2 | 1, as in runs of older versions, which keep it
        combine=(),  # heads that become one head over all combinations of their classes
        separate=(),  # heads that the first head's classes are cut into at '/': ('mask', 'age')
        class_depth=_anything(None),  # source=folder: 1: the first folder is the class (None: all)
        zip_encoding='',  # of names in a .zip that does not say: 'cp949', 'gbk', ... ('': by trial)
        group_regex='',  # source=folder, csv: takes the group out of the path, e.g. r'_(\d+)\.'
        long_tail=dict(  # removes training images: until the classes have a long tail, or a few
            imbalance=1.0,  # largest class / smallest class, 1 or more (1: nothing is removed)
            largest=0,  # images of the first class (0: as many as the smallest class has)
            # The most images of a class, after that; with one seed, fewer are among more (0: all).
            per_class=0,
            head='',  # whose classes ('': the first head)
        ),
        decisions=(),  # CSVs of `main.py curate`, edited or not: what is dropped, what is a copy
        # Pseudo-labelled pictures, which train and are never scored (docs/few-labels.md).
        extra=dict(
            file='',  # a file that `main.py pseudo` wrote ('': none)
            images='',  # folder or .zip of its pictures ('': where they were labelled)
            weight=1.0,  # of such a picture in the loss, where a labelled row has 1; above 0
            # Their share of a batch, above 0 and below 1 (None: as many as there are). Durations
            # and logs still count an epoch as the number of labelled rows.
            share=_anything(None),
            start=dict(percent=0),  # they are shown from then on
        ),
        unreadable='error',  # broken images: 'error' lists them and stops | 'drop' leaves them out
        changed='error',  # data differ from the run's start: 'error' | 'accept' keeps its split
        doodles=dict(  # the built-in drawings of source=doodles
            classes=48,  # figures, up to 48
            per_class=80,  # drawings per class
            writers=40,  # people who draw; the writer is the group
            size=96,  # pixels, width and height
            seed=0,  # of the drawings
            heads=('class',),  # 'class', 'tool' (pencil, pen, brush, marker) or both
            imbalance=1.0,  # largest class / smallest class
            wild_writers=0,  # the last so many writers turn, mirror and bend their paper
            near_duplicates=0.0,  # share of altered copies added, under another writer's name
            wrong_labels=0.0,  # share of the drawings with a wrong label
            photos=0.0,  # share of pictures added that look like photographs
        ),
    )
    config.split = dict(  # which images train, validate and test
        kind='holdout',  # 'holdout' | 'kfold' | 'given' (a column, train/val/test folders, a file)
        val=0.15,  # share held out for validation
        test=0.15,  # share held out for the test
        folds=5,  # kfold: number of folds, 2 or more
        fold=_anything(0),  # kfold: the fold that validates, from 0; (0, 3), 'all': one by one
        grouped=True,  # keep a group (person, drawer, duplicates) on one side
        head='',  # head to stratify by ('': the first)
        # A few unequal groups: seeds draw among splits whose class shares are off by up to 1.3
        # times as much as in the greedy split (0: that one itself, as in runs of older versions).
        tolerance=0.3,
        file='',  # given: a CSV with the columns id and split
        val_groups=(),  # names of groups that validate
        test_groups=(),  # names of groups that test
        seed=_anything(None),  # of the split (None: config.seed)
    )
    # How often a training row is shown in an epoch (input_pipeline/resampling.py). Durations and
    # logs still count an epoch as the number of training rows.
    config.resample = dict(
        kind='none',  # 'none' | 'over' | 'under' | 'multiply' | 'random' | 'cluster' | 'sqrt' |
                      # 'effective' | 'weighted' | 'balanced' | 'repeat_factor'
        head='',  # whose classes ('': the first head)
        start=dict(percent=0),  # resampling begins then; before, every row is shown once per epoch
        length=_anything(None),  # examples per epoch (None: what the kind gives)
        # over, under: images per class (None: the largest, the smallest); repeat_factor: rows come
        # more often for classes with fewer images (None: than 0.001 of the labelled rows).
        target=_anything(None),
        multipliers=_anything(()),  # multiply: {class: 2.0, ...}
        n=_anything(None),  # random, cluster: images per class or cluster (None: 600, 60)
        redraw=True,  # random, cluster: choose other images in each epoch
        k=10,  # cluster: clusters per class, by gradients and colours
        column='',  # cluster: a column that holds the clusters; weighted: that holds the weights
        beta=0.9999,  # effective: from 0 (as the data are) towards 1 (all classes equally often)
    )
    config.image = dict(  # how pictures are prepared for the model
        size=_anything(64),  # pixels of the model's input: a side, or (height, width)
        border='edge',  # outside of a warped picture: 'edge' | 'reflect' | 'white' | 'black'
        # How a picture gets this shape: 'squash' | 'pad' | 'crop'. None here and in the four keys
        # below: as the weights of init.pretrained or init.from expect; without them 'squash'.
        resize=_anything(None),
        interpolation=_anything(None),  # 'area' | 'bicubic' | 'bilinear' (None: see resize; 'area')
        crop_pct=_anything(None),  # crop: share of the resized picture kept (None: see resize; 1)
        # Three numbers (red, green, blue) or one in (x / 255 - mean) / std, which the device
        # computes (None: see resize; 0.5 each). Three become their luma where pictures are grey,
        # and a fourth, of transparency, is 0.5.
        mean=_anything(None),
        std=_anything(None),  # as mean, above 0 (None: see resize; 0.5 each)
        # Decode large JPEGs at 1/2, 1/4 or 1/8: for evaluation if at least 3x the size remains, for
        # transforms if no detail of the result is lost.
        reduced_decode=True,
        range16=_anything('auto'),  # 16-bit values: 'auto' (by the data) | 'full' | (black, white)
        cache_mb=1024,  # MiB for decoded pictures, kept if all of them fit at the size above
    )
    # Stages dict(until=<duration>, transforms=[dict(kind=..., p=..., ...)], lr_scale=1.0), one
    # after another; the last one lasts to the end. Kinds and units: docs/augmentation.md.
    config.curriculum = ()
    # Pictures of a batch mixed with each other, on the device; at most one entry applies per batch:
    # dict(kind='mixup'|'cutmix'|'halves', p=1.0, alpha=1.0, per='batch'|'example', head='',
    # classes=(), partner='any'|'same_class', labels='both'|'first', start=<duration>, until=...).
    config.mixing = ()
    config.loader = dict(  # reading ahead
        threads=2,  # threads that read, decode and warp, 1 or more
        workers=0,  # processes that do the same (0: none, the threads do it)
        prefetch=8,  # batches ahead, 1 or more
    )

    # The model's name, and any keyword of models.create_model for it (depth, img_size, drop_path,
    # head, ...); `main.py models` lists the names. in_channels=1 makes pictures grey,
    # and 4 adds their transparency.
    config.model = dict(
        name='vit_tiny_patch16_224',  # a name that `main.py models` lists
    )
    # Where the weights come from: give one. A checkpoint in the workdir itself comes first.
    config.init = {
        # Another workdir: continue its run in this one, with the same settings and data
        # (optimizer, step, order of the data and all).
        'resume_from': '',
        # A workdir: start from its best weights, with its preparation of pictures where `image` has
        # None. Of a k-fold workdir, each fold starts from the fold of its number.
        'from': '',
        # Validation or test rows that an ancestor (the run of `from`, and those before it) trained
        # on: 'error' refuses them | 'accept' marks them in every result.
        'seen': 'error',
        # 'default', a tag of timm's (`main.py models` lists them), a .safetensors or .pth file, a
        # Hugging Face repository, 'package' (the Python package that holds weights of the model,
        # requirements-weights.txt), or 'if_installed': what this machine already has, else none.
        'pretrained': '',
        # A folder with <model>.<tag>.safetensors or .pth, where tags are looked for before the
        # caches of Hugging Face and torch ('': none).
        'folder': '',
        # What becomes of the loaded classifier: 'reset' | 'keep' | 'resize' | 'auto', which resets
        # that of `pretrained` and takes that of `from` by the names of the classes ('keep': by
        # their order).
        'head': 'auto',
    }
    config.finetune = dict(  # which parameters train, and how fast
        # Rows (regex, dict(lr=1.0, wd=1.0, train=True, start=dict(epochs=2))) over names such as
        # 'blocks/3/attn/qkv/kernel'. The first row that matches the whole name decides; every
        # parameter must be covered; lr and wd are factors; before `start`, a duration, it is
        # frozen. (): everything trains, or only what lora adds and the heads.
        table=(),
        # Until then only the heads train, and rows of the table with a `start` that is over.
        unfreeze=dict(epochs=0),
        layer_decay=1.0,  # factor of the learning rate from each layer to the one below, up to 1
        # Levels of layer_decay: 'timm' | 'groups', as in older versions, whose runs keep it: one
        # for a dense block of a DenseNet, and what follows the last block is on the head's.
        levels='timm',
        lora=dict(  # low-rank adapters; without a table only they and the heads train
            rank=0,  # of the adapters (0: none)
            alpha=16.0,  # the adapters are scaled by alpha / rank
            dropout=0.0,  # on the adapters' input, a share
            # Which layers get adapters: a regex over their names | 'auto': the linear layers in a
            # transformer's blocks; in a CNN all layers except those of the stem and the heads.
            layers='auto',
        ),
    )
    # Heads on the features of a frozen backbone, which are computed once: heads x learning rates x
    # folds train together.
    config.probe = dict(
        # [dict(name='mlp', head='mlp', head_hidden=1024, ...), ...] ((): no probing); heads without
        # training: dict(name='near', kind='knn', k=20, temperature=0.07, center=False) and
        # dict(name='means', kind='prototypes', temperature=0.1, center=False, shrinkage=0.0).
        heads=(),
        lr=(),  # learning rates, each tried with each head ((): schedule.lr)
        views=0,  # augmented views per picture; epoch e shows view e modulo views (0: no views)
        dtype='float16',  # of the stored features: 'float16' | 'float32'
        cache='',  # folder of the features ('': ~/.cache/atelier/features)
    )
    config.optimizer = dict(  # how the gradient becomes an update
        name='adamw',  # 'sgd' | 'rmsprop' | 'adam' | 'nadam' | 'adamw' | 'nadamw' | 'lamb' |
                       # 'lion' | 'muon'; whether decay is decoupled is up to `decay`, not the name
        b1=0.9,  # all but sgd and rmsprop; muon: of Adam for parameters that are not matrices
        b2=0.999,  # as b1 (the paper of lion has 0.99)
        eps=1e-8,  # all but sgd, lion and muon (the paper of lamb has 1e-6)
        alpha=0.99,  # rmsprop: share of the mean square that is kept per step
        momentum=0.9,  # sgd, muon, rmsprop (torch's default for rmsprop is 0)
        nesterov=True,  # sgd, muon: Nesterov's momentum
        # nadam, nadamw: b1 grows by this schedule, as in torch's NAdam with 0.004 (None: b1 is
        # constant).
        momentum_decay=_anything(None),
        weight_decay=0.05,  # on kernels; none on norms, biases, embeddings
        decay='decoupled',  # 'decoupled': times the learning rate | 'coupled': L2 in the gradient
        # decay='coupled': the gradient is clipped before the decay is added, as in torch (False:
        # the sum is clipped, as in older versions, whose runs keep it).
        clip_first=True,
        clip_norm=1.0,  # largest norm of the whole gradient (0: no clipping)
        clip_value=0.0,  # largest absolute value in the gradient (0: no clipping)
        clip_adaptive=0.0,  # largest norm of gradient / weights per output unit (0: no clipping)
    )
    config.schedule = dict(  # the learning rate over the run
        name='cosine',  # 'constant' | 'step' | 'multi_step' | 'exponential' | 'polynomial' |
                        # 'cosine' | 'cosine_restarts' | 'triangular' | 'triangular2' | 'one_cycle'
        lr=1e-3,  # the peak of the learning rate
        scale_with_batch=0,  # batch size that lr is meant for; lr grows with batch_size (0: fixed)
        warmup=dict(percent=5),  # linear, from near 0; not for one_cycle and triangular(2)
        # 2: plateau and early stopping count from the end of the warm-up on, schedules that rise by
        # themselves have none, one longer than the run is refused | 1: as in older versions, whose
        # runs keep it.
        rules=2,
        cooldown=dict(steps=0),  # at the end of the run: linear, from where the schedule is
        cooldown_final=0.0,  # end of the cool-down, a share of lr
        final=0.0,  # polynomial, cosine, cosine_restarts, one_cycle: the end, a share of lr
        low=0.04,  # triangular, triangular2: the lowest; one_cycle: the start; a share of lr
        every=dict(epochs=10),  # step, exponential: how often gamma is applied
        gamma=0.1,  # step, multi_step, exponential: the factor
        at=(),  # multi_step: durations from the start at which gamma is applied
        power=1.0,  # polynomial: exponent (1: linear)
        period=dict(epochs=10),  # cosine_restarts: first period; triangular(2): up and down
        mult=1.0,  # cosine_restarts: length of a period / length of the one before, 1 or more
        rise=0.3,  # one_cycle: share of the run that climbs
        plateau=dict(  # on top of any schedule: cut the rate while eval.metric does not improve
            patience=_anything(None),  # a duration; longer than that without improvement: a cut
                                       # (None: off)
            factor=0.1,  # of a cut, 0 to 1
            min_delta=0.0,  # smallest improvement that counts, in the metric's unit
            cooldown=dict(steps=0),  # after a cut, until evaluations count again
            min_scale=0.0,  # all cuts together, at least this share of the schedule's rate
        ),
    )
    config.early_stopping = dict(  # ends the run when the validation no longer improves
        patience=_anything(None),  # a duration without improvement of eval.metric (None: off)
        min_delta=0.0,  # smallest improvement that counts, in the metric's unit
        restore_best=True,  # the best weights are the result, stopped early or not (False: last)
    )
    config.ema = dict(  # moving average of weights and BatchNorm statistics, used for predictions
        decay=0.0,  # per step, e.g. 0.999 (0: no average)
        warmup=True,  # limit the decay by warmup_kind after t steps
        warmup_kind='tensorflow',  # 'tensorflow': (1 + t) / (10 + t) | 'timm': 1 - (1 + t)^(-2/3)
        # Training pictures on which the BatchNorm statistics of the average are estimated anew
        # before each evaluation (0: they are averaged as well).
        statistics=0,
    )
    add_flat_minima_sections(config)  # sharpness, swa, lookahead, schedule_free
    # Steps whose loss, gradient or update is not finite. It costs a check of every number per step.
    config.guard = dict(
        # Such a step changes nothing; after so many in a row the run goes back to an older
        # checkpoint and continues without those batches (0: no guard, a loss that is not finite
        # ends the run).
        skip=0,
        rollbacks=2,  # how often it may go back before the run ends
    )
    config.loss = dict(  # the loss of each head
        # Images per class that balanced_softmax, logit_adjustment and class_weights go by: 'shown':
        # as resampling shows them, from its start on | 'data', also for eval.adjust_tau.
        counts='shown',
        # Whether the column `weight` weighs examples: 'auto': if resampling does not draw by it |
        # True | False.
        example_weights=_anything('auto'),
        # 'cross_entropy' | 'focal' | 'binary_cross_entropy' | 'balanced_softmax' |
        # 'logit_adjustment' | 'ldam'; of a multi-label head 'binary_cross_entropy' | 'asymmetric'.
        # By head: {'tags': 'asymmetric', 'kind': 'focal'}, those not named have a cross-entropy.
        name=_anything('cross_entropy'),
        # Share of the target that is spread over all classes; of a multi-label head, of each class
        # over applies and does not apply.
        label_smoothing=0.0,
        gamma=2.0,  # focal: exponent, 0 or more
        alpha=_anything(()),  # focal: a factor, or one per class ((): 1)
        tau=1.0,  # logit_adjustment: strength
        scale=30.0,  # ldam: factor of the logits
        max_margin=0.5,  # ldam: margin of the rarest class
        gamma_pos=0.0,  # asymmetric: exponent of classes that apply, 0 or more
        gamma_neg=4.0,  # asymmetric: exponent of the other classes, 0 or more
        clip=0.05,  # asymmetric: taken off the probability of the other classes, 0 to below 1
        # Weights of the classes in the loss; of a multi-label head where a class applies.
        class_weights=dict(
            # 'none' | 'balanced' | 'effective' | 'sqrt' | 'manual'; of multi-label heads also
            # 'pos_weight' (pictures without the label / with it).
            kind='none',
            head='',  # the only head they apply to ('': every head, by its own classes)
            start=dict(percent=0),  # weights apply from then on; before, classes count alike
            beta=0.9999,  # effective: from 0 (no weights) towards 1 (inverse frequency)
            manual=_anything(()),  # manual: {class: weight}, 1 for classes not named
            cap=100.0,  # pos_weight: the largest weight, above 0
        ),
        head_weights=(),  # of the heads in their order ((): all 1)
        # Class names as a tree, cut at '/': weights of the cross-entropies of its levels, from the
        # first folder to the class itself, (0.5, 1.0); by head {'class': (0.5, 1.0)} ((): the
        # class alone).
        levels=_anything(()),
    )

    config.eval = dict(  # evaluation on the validation and test images
        every=dict(epochs=1),  # between two validations during the training
        batch_size=256,  # examples per step, over all devices
        adjust_tau=0.0,  # subtract tau x log(training share) from the logits (post-hoc adjustment)
        # Of the validation, for the best checkpoint, plateau and early stopping: 'accuracy' |
        # 'loss' | 'f1_macro' | 'nll'; with a multi-label head also 'map' | 'f1_micro' |
        # 'f1_examples'; with a head of ordered classes also 'mae' | 'mae_median' | 'qwk'.
        metric='accuracy',
        # Multi-label heads, how probable a class is that is answered: 'f1': a threshold per class
        # that maximises its F1 on the validation rows, of all folds together (rare classes share
        # one) | 'half': 0.5.
        thresholds='f1',
        # Heads of ordered classes, which class is answered in CSVs, by load, votes and submissions:
        # 'probable': the most probable one | 'median': the median of the probabilities.
        answer='probable',
        ties='nll',  # best of equal scores: 'nll': the lower NLL, then the later | 'first'
    )
    config.checkpoint = dict(  # what resuming starts from
        every=dict(epochs=1),  # between two checkpoints
        keep=2,  # newest checkpoints kept, besides the best
        # What a longer duration would take back: a stage, resampling or mixing that had begun or
        # ended: 'error' | 'accept'.
        back='error',
    )
    config.log = dict(  # what is written during the training
        every=dict(steps=20),  # between two lines of metrics.jsonl
        tensorboard=True,  # write tensorboard/
        wandb='',  # project of Weights & Biases ('': off); wandb's own WANDB_MODE and more apply
        mlflow='',  # folder for a database of MLflow, or its tracking URI ('': off)
    )
    config.report = dict(  # the page report.html
        errors=24,  # errors shown, over all heads; at least four per head
        heat_maps=True,  # where the model looked in them; costs one compilation at the end
    )
    config.profile = dict(  # a trace of the device and the host, in workdir/profile
        start=dict(steps=20),  # first traced step
        steps=0,  # traced steps (0: no trace)
    )
    config.compile_cache = True  # keep compiled programs in ~/.cache/atelier/xla for later starts
    add_unlabelled_sections(config)
    add_device_sections(config)
    add_verb_sections(config)
    return config
