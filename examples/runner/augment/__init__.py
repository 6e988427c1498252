"""Augmentations on whole batches, wherever they live."""
