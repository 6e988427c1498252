"""What the tests of all scripts ask: did the loss fall?"""

import torch

STEPS = 30


def falls(losses, start=0):
    """Tell by the middle of a few steps, since every batch is another."""
    first, last = torch.tensor(losses[start : start + 5]), torch.tensor(losses[-5:])
    return bool(last.isfinite().all() and last.median() < first.median())
