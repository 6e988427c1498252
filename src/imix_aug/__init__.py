"""i-Mix for contrastive representation learning in PyTorch.

Three lines turn a contrastive training loop into i-Mix (Lee et al., ICLR 2021, arXiv 2010.08887)::

    imix = IMix(alpha=1.0)  # once, where the transforms are built
    x, labels = imix(view_1)  # mix one view, keep its virtual labels
    loss = imix_nce_loss(net(x), net(view_2), labels, temperature=0.2)  # contrast it with the other view

Mixing
    ``IMix``, ``InputMix``, ``VirtualLabels``
Losses
    ``imix_nce_loss`` (N-pair, MoCo), ``imix_ntxent_loss`` (SimCLR), ``imix_clip_loss`` and
    ``imix_sigmoid_loss`` (pairs of two kinds), ``imix_supcon_loss``, ``imix_byol_loss`` (BYOL, SimSiam),
    ``IMixLoss`` (wraps a loss of your own), ``NegativeQueue``
"""

from imix_aug._backend import use_backend
from imix_aug._imix_loss import IMixLoss
from imix_aug._labels import VirtualLabels
from imix_aug._losses import imix_byol_loss, imix_clip_loss, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss
from imix_aug._mix import IMix, InputMix
from imix_aug._queue import NegativeQueue
from imix_aug._sigmoid_loss import imix_sigmoid_loss

__version__ = "0.1.0"

__all__ = [
    "IMix",
    "IMixLoss",
    "InputMix",
    "NegativeQueue",
    "VirtualLabels",
    "imix_byol_loss",
    "imix_clip_loss",
    "imix_nce_loss",
    "imix_ntxent_loss",
    "imix_sigmoid_loss",
    "imix_supcon_loss",
    "use_backend",
]

# Pickles name a class by its module, and must outlive the private one.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name  # pyright: ignore[reportPossiblyUnbound, reportPossiblyUnboundVariable]
