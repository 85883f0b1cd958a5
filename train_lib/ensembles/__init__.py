"""How the predictions of several members become one answer, and what is said of it.

The members are joined by id (aligned), each ensemble is read once from the config (spec), and all
of them are counted in one pass over the rows (pool, rules); the folder fit learns their weights.
"""
