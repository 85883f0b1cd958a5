"""Scores of predictions, and how sure they are: NumPy on arrays, without models.

`scores` judges one answer, `intervals` says how sure that is, `bootstrap` and `statistics` compare
several; only `out_of_fold` reads stored predictions.
"""
