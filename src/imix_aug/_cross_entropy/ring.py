"""The two sweeps over the keys of all ranks, which are sent round a ring, block after block."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from imix_aug._cross_entropy import sweeps
from imix_aug._cross_entropy.columns import LeftOut
from imix_aug._cross_entropy.route import moves, nodes_of


def sweep_keys(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    left_out: LeftOut,
    wants_mean: bool,
    bounded: bool,
    group_name: str,
) -> tuple[Tensor, Tensor | None]:
    """Do as ``sweeps.sweep_keys`` does, over the keys of all ranks; what is left out by number is this rank's."""
    blocks = Ring(group_name, key.device).pass_round(key, left_out.key_ids)
    own, _ = next(blocks)
    total, mean_key = sweeps.sweep_keys(query, own, negatives, left_out, wants_mean, bounded)
    for block, ids in blocks:
        passing = LeftOut(row_ids=left_out.row_ids, key_ids=ids)
        lse, mean_of_block = sweeps.sweep_keys(query, block, None, passing, wants_mean, bounded)
        merged = torch.logaddexp(total, lse)
        if mean_key is not None and mean_of_block is not None:
            anchor = torch.where(merged.isinf(), 0, merged)
            mean_key *= (total - anchor).exp_()[:, None]
            mean_key += mean_of_block.mul_((lse - anchor).exp_()[:, None])
        total = merged
    return total, mean_key


def key_gradient(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    left_out: LeftOut,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    group_name: str,
) -> Tensor:
    """Do as ``sweeps.key_gradient`` does, for this rank's keys and the queries of all ranks."""
    ring = Ring(group_name, key.device)
    blocks = ring.pass_round(key, left_out.key_ids)
    own, _ = next(blocks)
    of_own = sweeps.key_gradient(query, own, columns, left_out, level, excess, weight)
    under_way = ring.send(of_own, move=0, tag=1)
    for move, (block, ids) in enumerate(blocks, start=1):
        passing = LeftOut(row_ids=left_out.row_ids, key_ids=ids)
        grad = sweeps.sweep_queries(query, block, passing, level, weight)
        (so_far,) = under_way.wait()  # What other ranks added arrived while this one computed its own share.
        under_way = ring.send(grad.add_(so_far), move=move, tag=1)
    (complete,) = under_way.wait()
    return complete


@dataclass
class _UnderWay:
    """Tensors that come in; those that go out must live as long."""

    received: tuple[Tensor, ...]
    sent: tuple[Tensor, ...]
    works: list[dist.Work]

    def wait(self) -> tuple[Tensor, ...]:
        for work in self.works:
            work.wait()
        return self.received


class Ring:
    """Tensors on their way from rank to rank, past all of them and home, while each computes with those it has."""

    def __init__(self, group_name: str, device: torch.device) -> None:
        self.group = _resolve_process_group(group_name)  # type: ignore[arg-type]
        self.moves = moves(nodes_of(self.group, device), dist.get_rank(self.group))

    def send(self, *tensors: Tensor, move: int, tag: int = 0) -> _UnderWay:
        """Start to send contiguous tensors on, and to receive their like."""
        to, origin = (dist.get_global_rank(self.group, rank) for rank in self.moves[move])
        received = tuple(torch.empty_like(each) for each in tensors)
        sends = [dist.P2POp(dist.isend, each, to, self.group, tag) for each in tensors]
        receives = [dist.P2POp(dist.irecv, each, origin, self.group, tag) for each in received]
        return _UnderWay(received, tensors, dist.batch_isend_irecv(sends + receives))

    def pass_round(self, own: Tensor, beside: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the tensors of this rank, then those of one rank after the other, the next ones under way."""
        here = tuple(each.contiguous() for each in (own, beside) if each is not None)
        last = len(self.moves) - 1  # It would bring them home.
        for move in range(len(self.moves)):
            under_way = self.send(*here, move=move) if move < last else None
            yield here[0], None if beside is None else here[1]
            if under_way is not None:
                here = under_way.wait()
