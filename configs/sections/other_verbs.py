"""The knobs of the verbs besides train; `common.get_config` adds them to those of a run."""

from ml_collections import ConfigDict, FieldReference


def _anything(default) -> FieldReference:
    """A field whose value may have another type than its default."""
    return FieldReference(default, field_type=object)


def add_verb_sections(config: ConfigDict) -> None:
    """Adds the sections and keys that only lr_find, explore, curate, features, pack, predict,
    study or plan read."""
    config.lr_find = dict(  # the verb lr_find: the loss while the learning rate grows
        low=1e-7,  # first learning rate
        high=10.0,  # last learning rate
        steps=100,  # training steps, 10 or more
        smoothing=0.9,  # share of the smoothed loss that is kept per step
        stop_at=4.0,  # stop when the smoothed loss is this many times its lowest, above 1
    )
    config.explore = dict(  # the verb explore; see also `curate`
        # An unlabelled second set of pictures, such as those of a test, which is put beside the
        # data: a folder, a zip archive, or a CSV or Parquet table with a column of paths ('': none)
        beside='',
    )
    # The verbs explore and curate. Explore uses `quality`, `duplicates` and `features`; curate uses
    # all, and writes the decisions that data.decisions obeys.
    config.curate = dict(
        quality=dict(  # thresholds of the flags
            black_and_white=9.0,  # chroma below (CIELAB, 99th percentile)
            dark=0.35,  # even the brightest hundredth of the pixels is below, 0 to 1
            bright=0.75,  # even the darkest hundredth of the pixels is above, 0 to 1
            blurred=25.0,  # sharpness below (variance of the Laplacian, 256 px)
            empty=0.02,  # contrast below (standard deviation of the grey levels, 0 to 1)
            odd_aspect=3.0,  # longer side / shorter side above
            tiny=32.0,  # shorter side below, pixels
        ),
        duplicates=dict(  # what counts as a copy
            bits=10,  # pictures whose hashes differ in at most so many of 64 bits are candidates
            neighbours=10,  # nearest neighbours per picture that are candidates too
            correlation=0.975,  # of two pictures laid upon each other, at least
            residual=1.5,  # their largest difference, at most, in standard deviations
        ),
        detectors=('duplicates', 'quality', 'photographs', 'labels', 'borders'),  # that run
        most=0.1,  # share of the pictures up to which a detector drops; more describe the data
        # By what pictures are alike. 'descriptor': gradients and colours | 'model': config.model
        # without its head, with the weights of config.init | a .parquet file of the verb features
        features='descriptor',
        quality_drop=(),  # flags above that drop a picture; the others mark it for review
        photographs=dict(  # photographs among drawings, or the reverse
            wanted='drawings',  # what most pictures are: 'drawings' | 'photographs'
            # 'statistics' | 'kmeans' | 'dbscan' (clusters of the model's features, or of the
            # statistics) | 'objects'
            method='statistics',
            marks='',  # statistics: a CSV with id,photograph (yes or no) of a few pictures
            objects='',  # objects: a CSV with id,objects, as counted by a detector
            least_objects=1.0,  # objects: number from which a picture is a photograph
            drop=0.5,  # probability from which a picture is dropped
            review=0.3,  # probability from which it is marked for review
        ),
        labels=dict(  # wrong labels
            predictions='',  # out-of-fold predictions: a k-fold workdir or its out_of_fold.npz
                             # ('': of a logistic regression on the features)
            head='',  # whose labels ('': the first head)
            score='margin',  # 'margin': log odds against the label | 'self_confidence'
            drop=_anything(3.0),  # with predictions: score from which a wrong label is dropped
                                  # (None: never); without, all are for review
        ),
        # Rules for pictures at the border of a label: dict(column='age', between=(57, 59),
        # action='drop'), dict(column='source', values=('web',), weight=0.5); a column of the data
        # or a head.
        borders=(),
    )
    config.features = dict(  # the verb features: one vector per picture, by a backbone
        dtype='float32',  # of the vectors: 'float32' | 'float16', half as large
        # Score them on the rows of config.data, by nearest neighbours and by a logistic regression,
        # both of the training rows; what follows is chosen on the validation rows.
        evaluate=False,
        neighbours=(1, 5, 10, 20, 50),  # numbers of neighbours to try
        strengths=(1e-4, 1e-3, 1e-2, 0.1, 1.0),  # inverse strengths C of the penalty to try
    )
    config.pack = dict(  # the verb pack: data -> ArrayRecord files
        folder='',  # folder to write
        size=0,  # pixels of the side below (0: unchanged); needs a quality
        side='longest',  # which side: 'longest' | 'shortest' | 'both': size x size, squashed
        # 1 to 100 (JPEG) | 'lossless' (PNG) | 'raw': not compressed, three bytes per pixel, the
        # fastest to read | 0 keeps the bytes of the files
        quality=_anything(0),
        shard_records=0,  # pictures per file (0: chosen)
        # Steps done once, before resizing, recorded in preprocessing.csv: 'face', 'background',
        # 'denoise', or dict(kind='face', margin=0.4, ...); needs a quality; see docs/data.md.
        preprocess=(),
    )
    config.predict = dict(  # the verb predict: logits of a trained workdir, for voting
        source='test',  # 'val' | 'test' | 'train' of the run's own data | 'data': config.data
        name='',  # source=data: name of these predictions ('': 'data'); 'test' if the run has none
        # source=data: False: pictures have no labels, folders are not classes, and a table may lack
        # the columns of labels, groups, weights and splits.
        labelled=True,
        views=('identity',),  # how each picture is shown: also 'hflip', 'vflip', 'both',
                              # 'scale1.15', 'flips', 'crops5', 'hflip+scale1.15'
        # Classes that mirroring views swap, by kind of flip: {"hflip": {"left": "right"}}; a kind
        # left out swaps what `swap` of that flip in the run's curriculum says.
        swap=_anything(()),
        dtype='float16',  # of the stored logits: 'float16' | 'float32'
        batch_size=0,  # pictures per step, over all devices (0: eval.batch_size)
    )
    config.study = dict(  # the verb study: arms x seeds x folds (configs/studies)
        seeds=(0, 1, 2),  # values of config.seed; every arm runs with each
        folds=(),  # split.kind='kfold': folds that run for every seed ((): split.fold as it is)
        metric='test.accuracy',  # a number of result.json
        baseline='',  # arm that all others are compared with ('': the first)
        workers=1,  # processes that share devices and cores; --workers=N says the same
        launcher='local',  # where the workers run: 'local' | 'slurm', each as a job of its own;
                           # --launcher=slurm says the same
        slurm=dict(  # launcher='slurm': what a job asks for
            partition='',  # name ('': that of the cluster by default)
            account='',  # name ('': that of the user by default)
            minutes=1440,  # limit of a job; two before its end it saves, and it is queued again
            gpus=1,  # per job, that is per worker
            cpus=4,  # cores per job
            memory_gb=0,  # GB per job (0: what the partition gives)
            extra=(),  # further options of sbatch: ('qos=high', 'constraint=a100', 'exclusive')
        ),
        retry=False,  # run failed cells again
        keep_checkpoints=False,  # of finished cells; else only predictions, scores and reports stay
        # What a config file with search() tries (docs/studies.md). Its trials, one run each, are
        # compared on the validation rows; then the best one and the config itself train with the
        # seeds above, and their difference is the result.
        search=dict(
            trials=16,  # proposals in all, 2 or more (grid, 0: every combination)
            per_bracket=0,  # proposals made together, once those before are over (0: all, or 8
                            # with optuna, which learns from those before)
            proposer='random',  # 'random': quasi-random points | 'grid': lists of values, every
                                # combination | 'optuna': its TPE sampler
            seed=1000,  # of the proposals and of the trials' runs; none of the seeds above
            rungs=(20, 50),  # percent of a run at which trials are judged ((): none is stopped)
            factor=3.0,  # at each rung the best 1 / factor of a bracket go on; 2: the better half
        ),
        # Give up an arm when the interval of its paired difference to the best arm lies beyond the
        # margin, on the worse side (95 %, corrected for arms and looks where pictures are known).
        stop=dict(
            after=0,  # judged once, after so many seeds, 2 or more (0: never)
            margin=0.0,  # in units of the metric, 0 or more
        ),
    )
    config.plan = dict(  # the verb plan: what the training step takes on config.mesh
        # Devices that need not be here: 'v5e:4x4', 'v5p:2x2x1' (TPU, chips per axis; '*2' behind it
        # for two slices), 'h100:1x1x8' (slices x hosts x GPUs), 'h100:8', types of clouds
        # ('v5litepod-16', 'a3-highgpu-8g'), 'cpu', 'cpu:8', or '' for those of this machine,
        # simulated if they are too few.
        target='',
        # Share of a device's memory that stays free, for the next batch, the programs of the
        # evaluation and holes between arrays; 0 or more, below 1. Not of plan_memory_gb.
        margin=0.05,
        # Candidates to compare: 'auto' (every split of the devices into data x fsdp), or e.g.
        # 'data=4,fsdp=4; data=2,fsdp=8,batch=512' ('': config.mesh with config.batch_size)
        meshes='',
    )
    config.plan_only = False  # train: only show what a run takes in memory on config.mesh
    config.plan_memory_gb = 80.0  # GiB per device of a plan without an absent target
