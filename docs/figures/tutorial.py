"""Run the tutorial's code and draw its figure: `python docs/figures/tutorial.py`.

With a number, `python docs/figures/tutorial.py 5`, run it for so many seeds instead and print what each reached.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from style import OWN, PARTNER, save

TUTORIAL = Path(__file__).parents[1] / "tutorial.md"


def run(seed: int = 0) -> dict[str, list[float]]:
    """Run every Python block of the page, and return the losses that it has then."""
    torch.set_num_threads(1)
    names: dict[str, list[float]] = {}
    for block in TUTORIAL.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(block.split("```")[0].replace("manual_seed(0)", f"manual_seed({seed})"), names)
    return names


def draw(losses: dict[str, list[float]]) -> plt.Figure:
    """The losses of both runs."""
    figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    axis.plot(losses["plain_losses"], label="plain", color=PARTNER)
    axis.plot(losses["mixed_losses"], label="i-Mix", color=OWN)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axis.legend()
    return figure


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for seed in range(int(sys.argv[1])):
            run(seed)
    else:
        losses = run()
        save("tutorial", lambda ink: draw(losses))
