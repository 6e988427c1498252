"""Random draws on the input's own device: shares, partners and boxes, with no wait between host and device."""

import math
from typing import Any

import torch
from torch import Tensor

# With a parameter of 1 or more a candidate is taken with a probability of at least 0.95: all fail once in 3e10 draws.
_CANDIDATES = 8


def _source(device: torch.device, generator: torch.Generator | None) -> dict[str, Any]:
    """Return where to draw; with ``generator=None`` spelt out, torch.compile would compile anew for each batch size.

    Always float32, whatever the default dtype is: half precision knows 129 lambdas.
    """
    return {"device": device, "dtype": torch.float32} | ({} if generator is None else {"generator": generator})


def _uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw from (0, 1], so that a logarithm is finite."""
    return 1 - torch.rand(shape, **_source(device, generator))


def log_gamma(alpha: float, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw ``(n,)`` logarithms of Gamma(alpha, 1) variates.

    Marsaglia and Tsang, "A simple method for generating gamma variables" (2000), with all its candidates drawn at once
    instead of a loop that the host would have to watch. Gamma(alpha + 1) * U^(1 / alpha) is Gamma(alpha) for any alpha,
    and logarithms keep the smallest of them from underflowing.
    """
    d = alpha + 1 - 1 / 3
    c = (9 * d) ** -0.5
    normal = torch.randn((_CANDIDATES, n), **_source(device, generator))
    possible = c * normal > -1
    log_v = 3 * torch.where(possible, c * normal, 0).log1p()
    log_u = _uniform((_CANDIDATES, n), device, generator).log()
    accepted = possible & (log_u < normal.square() / 2 + d * (1 - log_v.exp() + log_v))
    first = accepted.to(torch.uint8).argmax(dim=0, keepdim=True)
    boost = _uniform((n,), device, generator).log() / alpha
    return log_v.gather(0, first).squeeze(0) + math.log(d) + boost


def shares(alpha: tuple[float, float], n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw ``(n,)`` float32 values of ``max(b, 1 - b)`` with ``b ~ Beta(*alpha)``."""
    if alpha == (1.0, 1.0):
        b = torch.rand(n, **_source(device, generator))
    else:
        log_x, log_y = (log_gamma(a, n, device, generator) for a in alpha)
        b = torch.sigmoid(log_x - log_y)
    return torch.maximum(b, 1 - b)


def partners(n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw a random permutation of the rows."""
    options: dict[str, Any] = _source(device, generator) | {"dtype": torch.int64}
    return torch.randperm(n, **options)


def input_weights(
    alpha: float, n: int, num_aux: int, least: float, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw ``(n, 1 + num_aux)`` weights that sum to one, a row's own, which is at least ``least``, first."""
    if num_aux == 1:
        # As the authors' code does, which folds Beta: 2 max(b, 1 - b) - 1 runs from 0 to 1.
        own = 2 * shares((alpha, alpha), n, device, generator) - 1
        drawn = torch.stack([own, 1 - own], dim=1)
    else:
        drawn = dirichlet(alpha, n, num_aux + 1, device, generator)
    alone = torch.zeros(num_aux + 1, dtype=torch.float32, device=device)
    alone[0] = 1
    return torch.lerp(drawn, alone, least)


def dirichlet(alpha: float, n: int, components: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw ``(n, components)`` rows of Dirichlet(alpha, ..., alpha)."""
    return log_gamma(alpha, n * components, device, generator).view(n, components).softmax(dim=1)


def boxes(lam: Tensor, sizes: tuple[int, ...], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw for each lambda a box that covers about ``1 - lam`` of a grid, clipped at the border.

    Args:
        lam: ``(B,)``, the share that is to be left.
        sizes: the grid's extents: ``(H, W)``, or ``(T,)`` for a span.
        generator: where to draw from.

    Returns:
        Bounds ``(B, len(sizes), 2)`` int64, start and stop on each axis, and the share ``(B,)`` that is left exactly.
    """
    relative = (1 - lam) ** (1 / len(sizes))
    uniform = torch.rand((lam.shape[0], len(sizes)), **_source(lam.device, generator))
    area, bounds = torch.ones_like(lam, dtype=torch.int64), []
    for axis, size in enumerate(sizes):  # Sizes stay numbers of the host: to copy them to the device would wait for it.
        cut = (relative * size).long()
        center = (uniform[:, axis] * size).long().clamp_max(size - 1)
        start = center - cut // 2
        start, stop = start.clamp_min(0), (start + cut).clamp_max(size)
        area = area * (stop - start)
        bounds.append(torch.stack([start, stop], dim=1))
    return torch.stack(bounds, dim=1), (math.prod(sizes) - area).to(torch.float32) / math.prod(sizes)
