"""The store of predictions: logits that the verb predict writes and everything else reads.

The members of a vote are found here, joined by id, and refused where they would score rows that
they trained on.
"""
