"""Every knob of a run, once, with its default and a comment.

An experiment starts from `get_config()` and changes what it needs; the command line
changes the rest: `--config.schedule.lr=3e-4`. Durations are written in any unit,
`dict(epochs=30)`, `dict(steps=1000)`, `dict(examples=50_000)` or `dict(percent=10)` (of
the whole run), and an override may change the unit: `--config.duration.steps=100`.
"""

import difflib
import re

from ml_collections import ConfigDict, FieldReference


def _anything(default) -> FieldReference:
    """A field whose type is not that of its default."""
    return FieldReference(default, field_type=object)


def get_config() -> ConfigDict:
    """The defaults. Unknown keys are refused, here and on the command line."""
    config = ConfigDict()
    config.seed = 0  # of weights, order, augmentation, dropout and splits
    config.duration = dict(epochs=30)  # length of the training
    config.batch_size = 64  # examples a step, over all devices
    config.accumulate = 1  # parts of a batch done one after another, for one update: less memory;
                           # the same gradient, but a BatchNorm sees one part at a time
    config.precision = 'float32'  # of the computation: 'float32' | 'bfloat16'; weights stay float32

    config.data = dict(
        source='doodles',  # 'doodles' | 'digits' | 'folder' | 'csv' | 'tfds' | 'packed'
        folder='',  # source=folder: PATH/<class>/**/image.*, or a .zip of such a folder
        csv='',  # source=csv: the table; CSV or Parquet, a saved manifest too
        images='',  # source=csv: the folder or .zip that its paths start from ('': its own)
        tfds='',  # source=tfds: a name of TensorFlow Datasets
        tfds_dir='',  # source=tfds: where they are ('': ~/tensorflow_datasets)
        tfds_splits=(),  # source=tfds: its splits ((): those that the data set has)
        packed='',  # source=packed: a folder that `main.py pack` wrote
        allow_outside=False,  # source=folder, csv: allow paths and links out of that folder
        columns=dict(  # source=csv, tfds: names of the columns ('': guessed from common names)
            id='', image='', labels='', group='', weight='', split=''),
        classes=(),  # the class names allowed, in order ((): those that occur, sorted)
        combine=(),  # heads that become one, of all combinations of their classes
        separate=(),  # heads that the first head's classes are cut into at '/', as 'mask', 'age'
        group_regex='',  # source=folder: takes the group out of the path, e.g. '_(\\d+)\\.'
        long_tail=dict(  # leaves training images out until the classes have a long tail
            imbalance=1.0,  # largest class / smallest class
            largest=0,  # images of the first class (0: as many as the smallest has now)
            head='',  # whose classes ('': the first)
        ),
        decisions=(),  # CSVs of `main.py curate`, perhaps corrected: who is dropped, what is a copy
        unreadable='error',  # 'error': list broken images and stop | 'drop': go on without them
        changed='error',  # since the run was started: 'error' | 'accept': keep its split, and go on
        doodles=dict(  # source=doodles: the built-in drawings
            classes=48,  # how many of the 48 figures
            per_class=80,  # drawings of each
            writers=40,  # who draw them; the writer is the group
            size=96,  # pixels
            seed=0,  # of the drawings
            heads=('class',),  # 'class' and/or 'tool' (pencil, pen, brush, marker)
            imbalance=1.0,  # largest class / smallest class
            wild_writers=0,  # the last of the writers, whose paper is turned, mirrored and bent
            near_duplicates=0.0,  # share of altered copies added, under another writer's name
            wrong_labels=0.0,  # share of drawings with a wrong label
            photos=0.0,  # share of photograph-like pictures added
        ),
    )
    config.split = dict(
        kind='holdout',  # 'holdout' | 'kfold' | 'given' (a column, train/val/test folders, file)
        val=0.15,  # share held out for validation
        test=0.15,  # share held out for the test
        folds=5,  # kfold: how many
        fold=_anything(0),  # kfold: which one validates, or 'all' for one run after another
        grouped=True,  # keep a group (person, drawer, duplicates) on one side
        head='',  # the head to stratify by ('': the first)
        file='',  # given: a CSV with the columns id and split
        val_groups=(),  # groups that validate, by name
        test_groups=(),  # groups that test, by name
        seed=_anything(None),  # of the split (None: config.seed)
    )
    # How often a row of the training split comes in an epoch (input_pipeline/resampling.py). In
    # durations and logs an epoch stays as many examples as there are rows.
    config.resample = dict(
        kind='none',  # 'none' | 'over' | 'under' | 'multiply' | 'random' | 'cluster' | 'sqrt' |
                      # 'effective' | 'weighted' | 'balanced'
        head='',  # whose classes ('': the first)
        start=dict(percent=0),  # from then on; before it every row comes once (deferred sampling)
        length=_anything(None),  # examples of an epoch (None: what the kind gives)
        target=_anything(None),  # over, under: images a class (None: the largest, the smallest)
        multipliers=_anything(()),  # multiply: {class: 2.0, ...}
        n=_anything(None),  # random: images a class; cluster: images a cluster
        redraw=True,  # random, cluster: another choice each epoch
        k=10,  # cluster: clusters of a class, by gradients and colours
        column='',  # cluster: a column with the clusters instead; weighted: with the weight
        beta=0.9999,  # effective
    )
    config.image = dict(
        size=64,  # pixels, height and width of the model's input
        border='edge',  # what a warp sees outside the picture: edge | reflect | white | black
        # None: as the weights of init.pretrained ask for; without such, the value in brackets.
        resize=_anything(None),  # 'squash' | 'pad' | 'crop' [squash]
        interpolation=_anything(None),  # 'area' | 'bicubic' | 'bilinear' [area]
        crop_pct=_anything(None),  # crop: the share that is kept of the resized picture [1.0]
        mean=_anything(None),  # of (x / 255 - mean) / std, on the device [(.5, .5, .5)]
        std=_anything(None),  # [(.5, .5, .5)]
        reduced_decode=True,  # decode large JPEGs at 1/2, 1/4 or 1/8: for evaluation if they stay
                              # 3x the size, for transforms if they show as much
        cache_mb=1024,  # MiB of decoded pictures that are kept, if all fit at the size above
    )
    # Stages dict(until=<duration>, transforms=[dict(kind=..., p=..., ...)], lr_scale=1.0), one
    # after another; the last one lasts to the end. Kinds, units: input_pipeline/transforms.py.
    config.curriculum = ()
    # Pictures of a batch mixed with each other, on the device; at most one of these a batch:
    # dict(kind='mixup'|'cutmix'|'halves', p=1.0, alpha=1.0, per='batch'|'example', classes=(),
    # partner='any'|'same_class', labels='both'|'first', start=<duration>, until=<duration>).
    config.mixing = ()
    config.loader = dict(
        threads=2,  # that read, decode and warp
        workers=0,  # processes for the same (0: none, the threads do it)
        prefetch=8,  # batches ahead
    )

    # name and every keyword of models.create_model for that name (depth, img_size, drop_path, ...)
    config.model = dict(name='vit_tiny_patch16_224')
    config.init = {  # a checkpoint in the workdir itself comes before all of these; give one
        'resume_from': '',  # another workdir: go on in this one from where that run was, with the
                            # same settings and data: optimizer, step, order of the data and all
        'from': '',  # a workdir: start from its best weights (a head of another size starts anew)
        'pretrained': '',  # 'default', a tag of timm's (`main.py models` lists them), a
                           # .safetensors or .pth file, or a Hugging Face repository
        'head': 'auto',  # 'reset' | 'keep' | 'resize' the classifier; auto: pretrained resets it,
                         # from keeps it if it fits
    }
    config.finetune = dict(
        # Rows (regex, dict(lr=1.0, wd=1.0, train=True)) over names such as
        # 'blocks/3/attn/qkv/kernel'; the first that matches the whole name holds, every parameter
        # must be covered; lr and wd are factors. (): everything trains, or what lora asks for.
        table=(),
        layer_decay=1.0,  # the learning rate's factor from each layer to the one below it
        lora=dict(  # low-rank adapters; without a table only they and the heads train
            rank=0,  # 0: none
            alpha=16.0,  # they count alpha / rank times
            dropout=0.0,
            layers=r'blocks/.*/(qkv|q_proj|k_proj|v_proj|proj|fc1|fc1_g|fc1_x|fc2)',  # a regex
        ),
    )
    # Heads on frozen features, which are computed once: heads x lr x folds train together.
    config.probe = dict(
        heads=(),  # dict(name='mlp', head='mlp', head_hidden=1024, ...); (): no probing
        lr=(),  # learning rates, each with each head ((): schedule.lr)
        views=0,  # views of a picture; epoch e shows view e modulo views (0: the plain picture)
        dtype='float16',  # of the stored features: 'float16' | 'float32'
        cache='',  # folder for them ('': ~/.cache/atelier/features)
    )
    config.optimizer = dict(
        name='adamw',  # 'sgd' | 'rmsprop' | 'adam' | 'nadam' | 'adamw' | 'nadamw' | 'lamb' |
                       # 'lion' | 'muon'; how weights decay is `decay`'s matter, not the name's
        b1=0.9,  # all but sgd and rmsprop; muon's Adam for what is no matrix
        b2=0.999,  # the same (lion's paper has 0.99)
        eps=1e-8,  # all but sgd, lion and muon (lamb's paper has 1e-6)
        alpha=0.99,  # rmsprop: what the mean of the squares keeps in a step
        momentum=0.9,  # sgd, muon, rmsprop (torch's default for rmsprop: 0)
        nesterov=True,  # sgd, muon
        momentum_decay=_anything(None),  # nadam, nadamw: the momentum's schedule, as torch's
                                         # NAdam has it with 0.004 (None: it stays b1)
        weight_decay=0.05,  # none on norms, biases, embeddings
        decay='decoupled',  # 'decoupled': times the learning rate | 'coupled': L2 in the gradient
        clip_norm=1.0,  # of the whole gradient (0: no clipping)
        clip_value=0.0,  # of each number of the gradient (0: no clipping)
        clip_adaptive=0.0,  # gradient's norm / weights' norm, by output unit (0: no clipping)
    )
    config.schedule = dict(
        name='cosine',  # 'constant' | 'step' | 'multi_step' | 'exponential' | 'polynomial' |
                        # 'cosine' | 'cosine_restarts' | 'triangular' | 'triangular2' | 'one_cycle'
        lr=1e-3,  # the peak
        scale_with_batch=0,  # lr is meant for this batch size, and grows with batch_size (0: no)
        warmup=dict(percent=5),  # linear, from 0
        cooldown=dict(steps=0),  # the last of the run: linear, from where the schedule is
        cooldown_final=0.0,  # the end of the cool-down, as a share of lr
        final=0.0,  # polynomial, cosine, cosine_restarts, one_cycle: the end, as a share of lr
        low=0.04,  # triangular, triangular2: the lowest; one_cycle: the start; a share of lr
        every=dict(epochs=10),  # step, exponential: how often gamma is applied
        gamma=0.1,  # step, multi_step, exponential: the factor
        at=(),  # multi_step: durations from the start at which gamma is applied
        power=1.0,  # polynomial (1: linear)
        period=dict(epochs=10),  # cosine_restarts: the first; triangular, triangular2: up and down
        mult=1.0,  # cosine_restarts: each period's length as a multiple of the one before
        rise=0.3,  # one_cycle: the share of the run that climbs
        plateau=dict(  # on top of any: lower while eval.metric does not improve
            patience=_anything(None),  # a duration; longer than that without one: cut (None: off)
            factor=0.1,
            min_delta=0.0,  # that counts as an improvement, in units of the metric
            cooldown=dict(steps=0),  # after a cut, until evaluations count again
            min_scale=0.0,  # all cuts together, as a share of the schedule's rate
        ),
    )
    config.early_stopping = dict(
        patience=_anything(None),  # a duration without improvement of eval.metric (None: off)
        min_delta=0.0,  # that counts as an improvement, in units of the metric
        restore_best=True,  # the best weights count, stopped early or not (False: the last)
    )
    config.ema = dict(  # moving average of the weights and BatchNorm statistics, used to predict
        decay=0.0,  # a step, e.g. 0.999 (0: no average)
        warmup=True,  # after t steps at most (1 + t) / (10 + t)
    )
    # Steps whose loss, gradient or update is not finite. Costs a check of every number a step.
    config.guard = dict(
        skip=0,  # they change nothing; after so many in a row back to an older checkpoint, and on
                 # without those batches (0: no guard, a loss that is not finite ends the run)
        rollbacks=2,  # how often, before the run ends
    )
    config.loss = dict(
        name='cross_entropy',  # 'cross_entropy' | 'focal' | 'binary_cross_entropy' |
                               # 'balanced_softmax' | 'logit_adjustment' | 'ldam'
        label_smoothing=0.0,
        gamma=2.0,  # focal
        alpha=_anything(()),  # focal: a number, or one a class
        tau=1.0,  # logit_adjustment
        scale=30.0,  # ldam
        max_margin=0.5,  # ldam
        class_weights=dict(
            kind='none',  # 'none' | 'balanced' | 'effective' | 'sqrt' | 'manual'
            head='',  # whose ('': each head's own)
            start=dict(percent=0),  # from then on; before it every class counts alike
            beta=0.9999,  # effective
            manual=_anything(()),  # manual: {class: weight}
        ),
        head_weights=(),  # of several heads, in their order ((): all 1)
    )

    config.eval = dict(
        every=dict(epochs=1),
        batch_size=256,
        adjust_tau=0.0,  # subtract tau x log(training share) from the logits (post-hoc adjustment)
        metric='accuracy',  # of the validation, for the best checkpoint, plateau and early
                            # stopping: 'accuracy' | 'loss' | 'f1_macro' | 'nll'
    )
    config.checkpoint = dict(
        every=dict(epochs=1),
        keep=2,  # newest checkpoints kept, besides the best
    )
    config.log = dict(
        every=dict(steps=20),
        tensorboard=True,
    )
    config.report = dict(
        errors=24,  # shown, over all heads; at least four a head
        heat_maps=True,  # where in them the model looked; costs a compilation at the end
    )
    config.lr_find = dict(  # the verb lr_find: the loss while the learning rate grows
        low=1e-7,  # the first learning rate
        high=10.0,  # the last
        steps=100,
        smoothing=0.9,  # what the mean of the loss keeps in a step
        stop_at=4.0,  # stop when the smoothed loss is so many times the lowest
    )
    config.profile = dict(  # a trace of the device and the host, in workdir/profile
        start=dict(steps=20),  # the first step traced
        steps=0,  # how many (0: none)
    )
    config.compile_cache = True  # keep compiled programs in ~/.cache/atelier/xla for later starts
    config.curate = dict(  # the verbs explore and curate; measures: input_pipeline/curation
        quality=dict(  # what is flagged
            black_and_white=9.0,  # chroma below
            dark=0.35,  # even the brightest hundredth of the pixels is below
            bright=0.75,  # even the darkest hundredth is above
            blurred=25.0,  # sharpness below
            empty=0.02,  # contrast below
            odd_aspect=3.0,  # a side is so many times the other
            tiny=32.0,  # pixels of the shorter side below
        ),
        duplicates=dict(
            bits=10,  # hashes that differ in so many of 64 are candidates
            neighbours=10,  # so are a picture's nearest neighbours by gradients and features
            correlation=0.975,  # of two pictures laid upon each other, at least
            residual=1.5,  # their largest difference at most, in standard deviations
        ),
        # curate only, from here on. It writes decisions, which data.decisions obeys.
        detectors=('duplicates', 'quality', 'photographs', 'labels', 'borders'),
        features='descriptor',  # 'descriptor': gradients and colours | 'model': config.model
                                # without its head, with the weights of config.init
        quality_drop=(),  # flags above that drop a picture; the others are for review
        photographs=dict(
            wanted='drawings',  # what most pictures are: 'drawings' | 'photographs'
            # 'statistics' | 'kmeans' | 'dbscan' (clusters of the model's features, or of the
            # statistics) | 'objects'
            method='statistics',
            marks='',  # statistics: a CSV id,photograph (yes or no) of a few pictures
            objects='',  # objects: a CSV id,objects of a detector
            least_objects=1.0,  # objects: from so many on it is a photograph
            drop=0.5,  # probability from which on it is dropped
            review=0.3,  # and from which on it is for review
        ),
        labels=dict(
            predictions='',  # out-of-fold predictions: a k-fold workdir or its out_of_fold.npz
                             # ('': of a logistic regression on the features)
            head='',  # whose labels ('': the first)
            score='margin',  # 'margin': log odds against the label | 'self_confidence'
            drop=_anything(3.0),  # predictions: score from which on a wrong label is dropped
                                  # (None: never); without them all are for review
        ),
        # Pictures at the border of a label: dict(column='age', between=(57, 59), action='drop'),
        # dict(column='source', values=('web',), weight=0.5); columns of the data or heads.
        borders=(),
    )
    config.pack = dict(  # the verb pack: data -> ArrayRecord files
        folder='',  # to write
        size=0,  # pixels of the side below (0: as it is)
        side='longest',  # 'longest' | 'shortest'
        quality=_anything(0),  # of JPEG, 1 to 100; 'lossless'; 0 keeps the files' own bytes
        shard_records=0,  # pictures a file (0: chosen)
        # Steps done once, before resizing, recorded in preprocessing.csv: 'face', 'background',
        # 'denoise', or dict(kind='face', margin=0.4, ...); see input_pipeline/preprocessing.
        preprocess=(),
    )
    config.predict = dict(  # the verb predict: logits of a trained workdir, for voting
        source='test',  # 'val' | 'test' | 'train' of the run's own data | 'data': config.data
        name='',  # source=data: what these predictions are called ('': 'data')
        labelled=True,  # source=data: False: the pictures have no labels, folders are no classes
        views=('identity',),  # how each picture is shown, train_lib/views.py: also 'hflip',
                              # 'vflip', 'both', 'scale1.15', 'flips', 'crops5', 'hflip+scale1.15'
        dtype='float16',  # of the stored logits: 'float16' | 'float32'
        batch_size=0,  # pictures a step, over all devices (0: eval.batch_size)
    )
    config.study = dict(  # the verb study: arms x seeds x folds; see configs/studies
        seeds=(0, 1, 2),  # each is config.seed of a run of every arm
        folds=(),  # split.kind='kfold': these folds for every seed ((): split.fold as it is)
        metric='test.accuracy',  # of result.json
        baseline='',  # the arm that all others are compared with ('': the first)
        workers=1,  # processes that share devices and cores; --workers=N says the same
        retry=False,  # run cells again that failed
        keep_checkpoints=False,  # of finished cells; else only predictions, scores and reports stay
        # Give up an arm once, after so many seeds (0: never), the 95 % interval of its paired
        # difference to the best arm lies wholly more than the margin on the worse side.
        stop=dict(after=0, margin=0.0),
    )
    # Devices: all share a batch, and those along fsdp share the weights too (-1: the rest).
    config.mesh = dict(data=-1, fsdp=1)
    config.sharding = dict(  # how fsdp splits the weights
        # Rows (regex, 'largest') or (regex, an axis or None for each dimension), the first match of
        # the whole name holds: [('.*/kernel', (None, 'fsdp')), ('.*', ())]; 'auto': all by largest.
        rules=_anything('auto'),
        min_size=16384,  # smaller arrays stay whole
    )
    config.distributed = dict(  # several processes, each started with the same command
        coordinator='auto',  # HOST:PORT of process 0; 'auto': as Slurm, Open MPI, Kubernetes or a
                             # TPU pod say, and one process without them; '': one process
        processes=0,  # how many, with a HOST:PORT
        process=-1,  # the number of this one, with a HOST:PORT
        timeout=30,  # seconds until a process that is not heard of counts as dead
        join_timeout=300,  # seconds to wait for the others at the start
    )
    config.plan_only = False  # train: only show what a run takes in memory on config.mesh
    config.plan_memory_gb = 80.0  # GiB of a device that the plan is held against
    return config


_SOURCES = {'doodles': (), 'digits': (), 'folder': ('folder',), 'csv': ('csv', 'images'),
            'tfds': ('tfds',), 'packed': ('packed',)}


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
    """Reads what stands after the colon of `--config=FILE:key=value,key=value`.

    Args:
        arg: that text, or None. A comma belongs to a value unless `key=` follows.
        **defaults: the keys that this config knows besides the data keys, with defaults.

    Raises:
        ValueError: an unknown key, or a word without `=`.
    """
    known = {'data': '', 'folder': '', 'csv': '', 'images': '', 'tfds': '', 'packed': '',
             **defaults}
    values = dict(known)
    for part in _parts(arg):
        key, equals, value = part.partition('=')
        if not equals or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {near[0]}=...?' if near else f'known are {", ".join(known)}.'
            raise ValueError(f'The config argument {part!r} is not known: {hint}')
        values[key] = value
    return values


def _parts(arg: str | None) -> list[str]:
    return re.split(r',(?=[A-Za-z_]+=)', arg) if arg else []


def split_arg(arg: str | None, *keys: str) -> tuple[dict[str, str], str]:
    """The values of these keys, as far as they are given, and the rest of the text, for the config
    that a study starts from."""
    found, rest = {}, []
    for part in _parts(arg):
        key, _, value = part.partition('=')
        if key in keys:
            found[key] = value
        else:
            rest.append(part)
    return found, ','.join(rest)


def choose(key: str, value: str, allowed) -> str:
    """The value of a config argument, if it is one of those allowed.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1) or list(allowed)
        raise ValueError(f'{key}={value} is not known: did you mean {" or ".join(near)}?')
    return value


def choose_data(config: ConfigDict, args: dict[str, str]) -> ConfigDict:
    """Puts the data keys of `parse_arg` (data=, folder=, csv=, images=, ...) into the config.

    Raises:
        ValueError: a source that does not exist, or two at once.
    """
    given = [key for key in ('folder', 'csv', 'tfds', 'packed') if args[key]]
    if len(given) > 1:
        raise ValueError(f'The config arguments {given[0]}= and {given[1]}= exclude each other: '
                         f'give one source.')
    source = args['data'] or (given[0] if given else config.data.source)
    choose('data', source, _SOURCES)
    if given and given[0] != source:
        raise ValueError(f'data={source} and {given[0]}= exclude each other: give one source.')
    config.data.source = source
    for key in _SOURCES[source]:
        config.data[key] = args[key]
    if args['images'] and source != 'csv':
        raise ValueError('images= belongs to csv=: give csv=PATH,images=PATH.')
    return config
