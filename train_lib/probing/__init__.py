"""Probing: many heads trained at once on the features of a frozen backbone.

The features are computed once and kept in a cache (feature_cache.py); then one jitted program
trains every head of every fold with every learning rate (stacked_heads.py).
"""
