"""The way round a ring of ranks, which passes all ranks of a node before it leaves for the next node."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Nodes = list[list[int]]

_known: WeakKeyDictionary[ProcessGroup, Nodes] = WeakKeyDictionary()


def nodes_of(group: ProcessGroup, device: torch.device) -> Nodes:
    """Return the ranks of each node, or all as those of one where nodes hold different numbers of them.

    The ranks tell each other once per group where they run, so that all come to the same.
    """
    if group not in _known:
        hosts = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(hosts, torch.tensor([_host()], device=device), group=group)
        _known[group] = by_host(hosts.tolist())
    return _known[group]


def by_host(hosts: Sequence[int]) -> Nodes:
    """Sort ranks by the hosts that they run on."""
    nodes: dict[int, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    is_even = len({len(ranks) for ranks in nodes.values()}) == 1
    return list(nodes.values()) if is_even else [list(range(len(hosts)))]


def moves(nodes: Nodes, rank: int) -> list[tuple[int, int]]:
    """Return to which rank this one sends, and from which it receives, in each move of a round.

    A tensor passes the ranks of a node one after the other. Then all ranks of the node send theirs to the next node at
    once, each to its like, and so each through its own network card. The last move brings a tensor home.
    """
    count, size = len(nodes), len(nodes[0])
    node, place = next((node, ranks.index(rank)) for node, ranks in enumerate(nodes) if rank in ranks)

    def at(nodes_on: int, places_on: int) -> int:
        return nodes[(node + nodes_on) % count][(place + places_on) % size]

    # How many nodes, and how many places within one, a tensor is away from home after each move.
    away = [(step // size, step - step // size) for step in range(count * size)] + [(0, 0)]
    return [
        (at(node_2 - node_1, place_2 - place_1), at(node_1 - node_2, place_1 - place_2))
        for (node_1, place_1), (node_2, place_2) in itertools.pairwise(away)
    ]


def _host() -> int:
    """Return a number for the name of this process's host."""
    digest = hashlib.blake2b(platform.node().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
