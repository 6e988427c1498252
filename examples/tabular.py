"""Pretrain on a table, with and without i-Mix, and compare what the features are worth.

python examples/tabular.py                              # scikit-learn's digits, a few minutes
python examples/tabular.py --data covtype --seeds 3     # UCI Covertype, downloaded once
python examples/tabular.py --data mine.csv --label species
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.domains.tabular import TABULAR
from runner.run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Train with each mix and seed, and report."""
    run(TABULAR, argv)


if __name__ == "__main__":
    main()
