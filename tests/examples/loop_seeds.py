"""What the example loops are worth without and with i-Mix, seed by seed: the second table of examples/README.md.

python tests/examples/loop_seeds.py                       # all loops, seeds 0, 1 and 2
python tests/examples/loop_seeds.py tabular --seeds 3 4
"""

import argparse
import importlib.util
import inspect
from pathlib import Path

LOOPS = Path(__file__).parents[2] / "examples" / "loops"


def load(name):
    spec = importlib.util.spec_from_file_location(name, LOOPS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(name, seeds):
    """Yield the seed, and two accuracies each of a training without i-Mix and of one with it."""
    loop = load(name)
    epochs, data = inspect.signature(loop.main).parameters["epochs"].default, loop.load(None)
    for seed in seeds:
        yield seed, *(loop.judge(loop.train(data[0], epochs, alpha=alpha, seed=seed), *data) for alpha in (0.0, 1.0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loops", nargs="*", default=sorted(path.stem for path in LOOPS.glob("*.py")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    for name in options.loops:
        for seed, *pair in measure(name, options.seeds):
            shown = " | ".join(f"{100 * linear:.1f}, {100 * neighbours:.1f}" for linear, neighbours in pair)
            print(f"| {name} | {seed} | {shown} |", flush=True)
