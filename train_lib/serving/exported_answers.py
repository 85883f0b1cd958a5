"""How an exported model answers where a head has several labels per picture.

Each class of such a head is a question of its own: its probability is the sigmoid of its logit, and
it is answered where that reaches its threshold. Logits and names alone do not say so.
"""

from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.atomic_files import write_json
from train_lib.metrics.set_scores import HALF
from train_lib.metrics.thresholds import by_class
from train_lib.predictions.run_folders import thresholds_of
from train_lib.serving.trained_models import TrainedModel

NAME = 'answers.json'


def answers_of(workdir: Path, trained: TrainedModel) -> dict[str, dict[str, Any]]:
    """What `NAME` holds, {} for a run without a multi-label head.

    Args:
        workdir: whose result.json has the thresholds: of the run, of a fold, or of all folds.
        trained: the model, or that of one of the folds.

    Returns:
        {head: how it answers}: `multi_label` and `activation` ('sigmoid' or 'softmax'), and of a
        multi-label head `thresholds` {class: probability}, 0.5 where the run fitted none, and the
        `separator` between the labels of a picture in the run's own tables.

    Raises:
        ConfigError: result.json is damaged.
    """
    if not trained.multi_label:
        return {}
    fitted = thresholds_of(workdir, trained.classes)
    found: dict[str, dict[str, Any]] = {}
    for head, names in trained.classes.items():
        if head not in trained.multi_label:
            found[head] = dict(multi_label=False, activation='softmax')
            continue
        thresholds = fitted.get(head, np.full(len(names), HALF))
        found[head] = dict(multi_label=True, activation='sigmoid',
                           thresholds=by_class(thresholds, names),
                           separator=trained.config.data.label_separator)
    return found


def write_answers_of(trained: TrainedModel, folder: Path) -> dict[str, str]:
    """Writes `NAME` of a model with a multi-label head, by the thresholds of its own run or fold.

    Returns:
        {file name: one line of what it is}, {} of other models.
    """
    if not trained.multi_label:
        return {}
    write_json(folder / NAME, answers_of(trained.workdir, trained))
    return {NAME: '{head: whether several of its labels may apply to a picture, the activation of '
                  'its logits, and the probability from which each label is answered}'}
