"""What is measured: one function a subcommand, a list of rows each."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import contestants
from benchmarks.arguments import ARGUMENTS
from benchmarks.contestants import Batch
from benchmarks.timing import rounds
from imix_aug import IMix, imix_nce_loss

Row = dict[str, Any]


def parse_size(text: str) -> tuple[int, int, int]:
    """Read ``NxD`` or ``N+KxD``: queries, negatives, width."""
    try:
        rows, width = text.lower().split("x")
        n, _, k = rows.partition("+")
        size = int(n), int(k or 0), int(width)
    except ValueError:
        raise ValueError(f"a size must read NxD or N+KxD, got {text!r}") from None
    if size[0] < 1 or size[1] < 0 or size[2] < 1:
        raise ValueError(f"a size must be positive, got {text!r}")
    return size


def loss(options: Any) -> Iterator[Row]:
    """Loss plus gradients against the formula, other kernels and the bare matrix products."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    peers, absent = contestants.available([name for name in options.peers if name in contestants.PEERS], device)
    for line in absent:
        print(f"left out: {line}")
    for text in options.sizes:
        n, k, d = parse_size(text)
        torch.compiler.reset()  # A formula compiled for one size: what the next one finds must not be a general graph.
        batch = Batch.draw(n, k, d, dtype, device, unmixed=options.unmixed)
        losses = {"imix-aug": contestants.imix_aug, "formula": contestants.formula, **peers}
        errors = {name: contestants.relative_error(each, batch) for name, each in losses.items()}
        runs = {name: contestants.with_gradients(each, batch) for name, each in losses.items()}
        runs["matrix products"] = contestants.matrix_products(batch)
        times = rounds(runs, options.threads, options.rounds, options.seconds)
        operations = (6 if batch.key.requires_grad else 4) * n * (n + k) * d
        yield {
            "size": f"{text}, unmixed" if options.unmixed else text,
            "dtype": options.dtype,
            "operations": operations,
            "times": times,
            "errors": errors,
            "speedup": {name: times[name]["median"] / times["imix-aug"]["median"] for name in losses},
            "floors": times["imix-aug"]["median"] / times["matrix products"]["median"],
        }


def simclr(options: Any) -> Iterator[Row]:
    """The unmixed NT-Xent loss with gradients, which other packages compute too."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    losses, absent = contestants.simclr(options.peers)
    for line in absent:
        print(f"left out: {line}")
    for text in options.simclr_sizes:
        n, _, d = parse_size(text)
        batch = Batch.draw(n, 0, d, dtype, device)
        views = (batch.query, batch.key)
        runs = {
            name: (lambda each=each, views=views: torch.autograd.grad(each(*views), views))
            for name, each in losses.items()
        }
        too_large = [name for name, run in runs.items() if not _fits_in_memory(run)]
        for name in too_large:
            print(f"left out at {text}: {name}, which ran out of memory")
            del runs[name]
        exact = losses["imix-aug"](*(view.detach().double() for view in views)).item()
        times = rounds(runs, options.threads, options.rounds, options.seconds)
        yield {
            "size": text,
            "dtype": options.dtype,
            "times": times,
            "errors": {name: abs(losses[name](*views).item() - exact) / exact for name in runs},
            "speedup": {name: times[name]["median"] / times["imix-aug"]["median"] for name in runs},
        }


def _fits_in_memory(run: Callable[[], object]) -> bool:
    try:
        run()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return False
        raise
    return True


def growth(options: Any) -> Iterator[Row]:
    """Time of this package's loss against N M D: once the products rule, it grows as they do."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    for text in options.growth_sizes:
        n, k, d = parse_size(text)
        batch = Batch.draw(n, k, d, dtype, device)
        times = rounds(
            {
                "imix-aug": contestants.with_gradients(contestants.imix_aug, batch),
                "matrix products": contestants.matrix_products(batch),
            },
            options.threads,
            options.rounds,
            options.seconds,
        )
        yield {
            "size": text,
            "dtype": options.dtype,
            "nmd": n * (n + k) * d,
            "times": times,
            "gflops": 6e-9 * n * n * d / times["imix-aug"]["median"],
        }


def memory(options: Any) -> Iterator[Row]:
    """Peak memory of one loss with its gradients, above a process that ran N = 256; a fresh process each."""
    for n in options.memory_rows:
        methods = ["imix-aug", "formula"] if n <= options.dense_rows else ["imix-aug"]
        yield {
            "size": f"{n}x{options.memory_width}",
            "megabytes": {name: _peak(name, n, options) - _peak(name, 256, options) for name in methods},
            "logits_megabytes": 4e-6 * n * n,
        }


def arguments(options: Any) -> Iterator[Row]:
    """Peak memory of each argument and loss at one N, above the plain loss at N = 256; a fresh process each."""
    small = _peak("imix_nce_loss", 256, options)
    for name in options.arguments:
        megabytes = _peak(name, options.argument_rows, options) - small
        yield {"size": name, "rows": options.argument_rows, "megabytes": {"imix-aug": megabytes}}


def cost(options: Any) -> Iterator[Row]:
    """Time of each argument and loss with its gradients, the plain loss beside it in the same rounds."""
    n, _, d = parse_size(options.cost_size)
    batch = Batch.draw(n, 0, d, getattr(torch, options.dtype), torch.device(options.device))

    def run(loss: contestants.Loss) -> Callable[[], object]:
        return lambda: loss(batch).backward()

    for name in options.arguments:
        contesting = {"imix_nce_loss": run(ARGUMENTS["imix_nce_loss"]), "with it": run(ARGUMENTS[name])}
        times = rounds(contesting, options.threads, options.rounds, options.seconds)
        ratio = times["with it"]["median"] / times["imix_nce_loss"]["median"]
        yield {"size": name, "shape": options.cost_size, "times": times, "ratios": {"with it": ratio}}


def directions(options: Any) -> Iterator[Row]:
    """Both directions of imix_clip_loss against two calls of imix_nce_loss and one."""
    for text in options.direction_sizes:
        n, _, d = parse_size(text)
        batch = Batch.draw(n, 0, d, getattr(torch, options.dtype), torch.device(options.device))
        for temperature, value in contestants.TEMPERATURES.items():
            losses = contestants.directions(value)
            runs = {name: contestants.with_gradients(loss, batch) for name, loss in losses.items()}
            times = rounds(runs, options.threads, options.rounds, options.seconds)
            one = times["one direction"]["median"]
            ratios = {name: times[name]["median"] / one for name in losses if name != "one direction"}
            yield {"size": f"{text}, temperature {temperature}", "times": times, "ratios": ratios}


def _peak(name: str, n: int, options: Any) -> float:
    command = [sys.executable, "-m", "benchmarks.peak", name, str(n), str(options.memory_width), options.device]
    finished = subprocess.run([*command, str(options.threads)], capture_output=True, text=True, check=True)
    return float(json.loads(finished.stdout))


def mix(options: Any) -> Iterator[Row]:
    """Mixing a batch: bytes per second, two reads and a write counted, against PyTorch's formula and a copy."""
    device = torch.device(options.device)
    for megabytes in options.megabytes:
        x = torch.rand(256, max(1, int(megabytes * 1e6 / 4 / 256 / 1024)), 32, 32, device=device)
        imix = {mode: IMix(mode=mode) for mode in ("mixup", "cutmix")}

        def formula(x: Tensor = x) -> Tensor:
            b = torch.distributions.Beta(1.0, 1.0).sample((len(x),)).to(x.device)
            lam = torch.maximum(b, 1 - b)[:, None, None, None]
            return lam * x + (1 - lam) * x[torch.randperm(len(x), device=x.device)]

        times = rounds(
            {
                "mixup": lambda x=x, imix=imix: imix["mixup"](x),
                "cutmix": lambda x=x, imix=imix: imix["cutmix"](x),
                "mixup, formula": formula,
                "copy": x.clone,
            },
            options.threads,
            options.rounds,
            options.seconds,
        )
        size = x.numel() * x.element_size()
        traffic = {"copy": 2}
        yield {
            "size": f"{size / 1e6:.1f} MB",
            "bytes": size,
            "times": times,
            "gigabytes_per_second": {
                name: traffic.get(name, 3) * size / 1e9 / each["median"] for name, each in times.items()
            },
        }


def step(options: Any) -> Iterator[Row]:
    """A mixed training step against an unmixed one: two views through a network, the loss, SGD."""
    device = torch.device(options.device)
    for text in options.models:
        name, _, shape = text.partition(":")
        batch_size, side = (int(part) for part in shape.split("x"))
        model = _model(name, side).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        views = torch.rand(2, batch_size, 3, side, side, device=device)
        imix = IMix()

        def train(mixed: bool, model=model, optimizer=optimizer, views=views, imix=imix) -> None:
            x, labels = imix(views[0]) if mixed else (views[0], None)
            optimizer.zero_grad()
            imix_nce_loss(model(x), model(views[1]), labels).backward()
            optimizer.step()

        times = rounds(
            {"unmixed": lambda train=train: train(False), "mixed": lambda train=train: train(True)},
            options.threads,
            options.rounds,
            options.seconds,
        )
        yield {
            "size": text,
            "times": times,
            "overhead": times["mixed"]["median"] / times["unmixed"]["median"] - 1,
        }


def _model(name: str, side: int) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 512), nn.ReLU(), nn.Linear(512, 128))
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)(num_classes=128)
    if side <= 64:  # the usual stem for small images
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
