"""Whether more of a score is better: the one table that whoever compares scores goes by."""

MORE_IS_BETTER = {
    **dict.fromkeys(('accuracy', 'top5', 'precision_macro', 'recall_macro', 'f1_macro',
                     'precision_micro', 'recall_micro', 'f1_micro', 'f1_examples', 'map', 'qwk'),
                    True),
    **dict.fromkeys(('loss', 'nll', 'ece', 'brier', 'mae', 'mae_median'), False)}


def more_is_better(metric: str) -> bool:
    """Whether more of a score is better.

    Args:
        metric: its name, or a dotted path to it such as 'test.age.mae'. More is better of one that
            is not in the table, as of means such as 'test_accuracy_mean'.
    """
    return MORE_IS_BETTER.get(metric.rpartition('.')[2], True)
