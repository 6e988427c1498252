"""Pretrain on spoken words, with and without i-Mix, and compare what the features are worth.

python examples/speech.py                               # synthesised digits, a few minutes
python examples/speech.py --data speechcommands         # downloaded once, 2.3 GB
python examples/speech.py --data FOLDER                 # FOLDER/WORD/*.wav, or .flac, .ogg, .mp3
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.domains.speech import SPEECH
from runner.run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Train with each mix and seed, and report."""
    run(SPEECH, argv)


if __name__ == "__main__":
    main()
