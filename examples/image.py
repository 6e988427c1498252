"""Pretrain on images, with and without i-Mix, and compare what the features are worth.

python examples/image.py                                # scikit-learn's digits, a minute or two
python examples/image.py --data cifar10                 # downloaded once
python examples/image.py --data FOLDER                  # FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png ...
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.domains.image import IMAGES
from runner.run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Train with each mix and seed, and report."""
    run(IMAGES, argv)


if __name__ == "__main__":
    main()
