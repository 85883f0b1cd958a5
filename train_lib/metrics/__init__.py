"""Scores of predictions, and how sure they are: NumPy on arrays, without models.

`scores` judges one answer, `intervals` says how sure that is, `statistics` compares several; only
`out_of_fold` reads stored predictions.
"""
