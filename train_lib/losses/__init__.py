"""What the training minimises: the loss of each head, class weights, and the mixing of images and
labels in a batch. Everything is a function to be traced, or is computed once before the training.
"""
