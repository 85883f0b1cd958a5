"""What a vote learns from labelled rows that no member trained on: weights, selection, temperature.

Whatever is fitted here is scored twice: on the rows of the fit, and on rows that it left out.
"""
