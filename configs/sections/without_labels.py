"""The knobs of what a run learns without labels; `common.get_config` adds them to the others."""

from ml_collections import ConfigDict, FieldReference


def _anything(default) -> FieldReference:
    """A field whose value may have another type than its default."""
    return FieldReference(default, field_type=object)


def add_unlabelled_sections(config: ConfigDict) -> None:
    """Adds the sections unlabelled, teacher and distill."""
    # Pictures without labels beside the labelled ones: a weak and a strong view of a picture should
    # get the same answer.
    config.unlabelled = dict(
        # 'none' | 'fixmatch': a sure answer to the weak view is the label of the strong one |
        # 'mean_teacher': the answer of the moving average (ema.decay above 0) to the weak view is
        # the target of the strong one.
        kind='none',
        # 'hidden': training rows without a label, and those that data.long_tail leaves out |
        # 'folder' | 'csv': pictures that are no rows of the run; labels there are not read.
        source='hidden',
        folder='',  # source=folder: the folder or .zip with them, in any folders below it
        csv='',  # source=csv: the table, whose columns are named as those of the run
        images='',  # source=csv: folder or .zip that its paths are relative to ('': the CSV's own)
        batch_size=_anything(None),  # pictures per step, over all devices (None: batch_size)
        weight=1.0,  # of their loss, 0 or more
        start=dict(percent=0),  # their loss counts from then on
        ramp=dict(percent=0),  # how long the weight takes to grow from there, as exp(-5 (1 - t)^2)
        # Least probability of an answer that is a target (None: 0.95 of fixmatch, else 0).
        threshold=_anything(None),
        # mean_teacher, of probabilities: 'mse': squared, summed over the classes | 'kl'.
        distance='mse',
        weak=_anything(None),  # transforms of the weak view (None: those of the curriculum's stage)
        strong=('rand_augment', 'cutout'),  # transforms of the strong view
        # Keep pictures that are the same files as validation or test pictures, or of their groups;
        # this is marked in every result (False: they are left out).
        transductive=False,
    )
    # A trained run that answers every training picture; the answer is learned beside the label.
    config.teacher = dict(
        workdir='',  # of the run, whose best weights answer; of a k-fold run, those of each fold
        weight=0.5,  # share of the loss that is the teacher's, 0 to 1; the rest is the labels'
        temperature=2.0,  # divides the logits of both; the loss is multiplied by its square
        # Above 0, the student also learns which pictures of a batch the teacher's pooled features
        # find alike: the weight of that loss, which is 0 to 4 and added to the others.
        features=0.0,
    )
    # A student: what finished runs, or a vote of them, said of the training rows is learnt beside
    # the labels; rows of which they said nothing go by their label alone (docs/few-labels.md).
    config.distill = dict(
        teachers=(),  # workdirs or globs of runs, k-fold runs too, or folders of votes ((): none)
        # 'out_of_fold': what is said of rows by models that did not train on them | 'own': of rows
        # that they trained on too, by which fold k of a run teaches fold k of another.
        rows='out_of_fold',
        temperature=2.0,  # of the teacher's and the student's probabilities, above 0
        weight=0.5,  # of the teacher, against 1 - weight of the label; above 0, up to 1
    )
