"""Trained runs outside of their training: loaded for a program of one's own, and exported.

A k-fold run is several trained models, whose probabilities are averaged.
"""
