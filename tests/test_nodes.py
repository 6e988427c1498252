"""The ring over nodes: who sends to whom, against one process, and what crosses from node to node."""

import itertools
import platform

import pytest
import test_distributed
import test_distributed_arguments
import torch
import torch.distributed as dist
from ranks import on_hosts, ring

from imix_aug import imix_nce_loss
from imix_aug._cross_entropy import route
from imix_aug._cross_entropy.route import by_host, moves


@pytest.mark.parametrize(("count", "size"), list(itertools.product(range(1, 7), repeat=2)))
def test_a_tensor_passes_every_rank_once_and_comes_home(count, size):
    nodes = [list(range(node * size, (node + 1) * size)) for node in range(count)]
    routes = [moves(nodes, rank) for rank in range(count * size)]
    for home in range(count * size):
        path = [home]
        for move in range(count * size):
            to, _ = routes[path[-1]][move]
            assert routes[to][move][1] == path[-1]
            path.append(to)
        assert sorted(path[:-1]) == list(range(count * size))
        assert path[-1] == home
        crossings = [(a, b) for a, b in itertools.pairwise(path) if a // size != b // size]
        assert len(crossings) == (count if count > 1 else 0)
        assert all(b // size == (a // size + 1) % count for a, b in crossings)
        assert all(a % size == b % size for a, b in crossings[:-1])  # from a card to its like; the way home may differ


def test_ranks_are_sorted_by_host():
    assert by_host([7, 7, 7]) == [[0, 1, 2]]
    assert by_host([7, 7, -3, -3]) == [[0, 1], [2, 3]]
    assert by_host([7, -3, 7, -3]) == [[0, 2], [1, 3]]
    assert by_host([1, 2, 3]) == [[0], [1], [2]]
    assert by_host([7, 7, 7, -3]) == [[0, 1, 2, 3]]


def test_a_host_is_a_number_that_ranks_can_exchange(monkeypatch):
    def number(name):
        monkeypatch.setattr(platform, "node", lambda: name)
        return route._host()

    names = [f"node-{place}" for place in range(64)]
    numbers = torch.tensor([number(name) for name in names], dtype=torch.int64)  # refuses one too large
    assert len(numbers.unique()) == len(names)
    assert number("node-7") == numbers[7]


TWO_NODES = {"a node after the other": [0, 0, 1, 1], "by turns": [0, 1, 0, 1], "uneven": [0, 0, 0, 1]}


def train_on_hosts(rank, size, hosts, kinds, losses):
    with on_hosts(hosts):
        for kind in kinds:
            test_distributed.train_ddp(rank, size, kind, "mean", True)
        for loss in losses:
            test_distributed_arguments.train(rank, size, loss, True)


@pytest.mark.parametrize("hosts", TWO_NODES.values(), ids=TWO_NODES)
def test_two_nodes_of_two_get_the_gradients_of_one_process(worlds, hosts):
    worlds[4].run(train_on_hosts, hosts, test_distributed.KINDS, ["nce", "supcon"])


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [[0] * 4 + [1] * 4, [0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3]], ids=str)
def test_eight_ranks_get_the_gradients_of_one_process(worlds, hosts):
    worlds[8].run(train_on_hosts, hosts, test_distributed.KINDS, ["nce", "supcon"], timeout=1200)


def train_in_half(rank, size, hosts):
    """A group of every other rank, whose nodes are its own."""
    members = list(range(0, size, 2))
    group = dist.new_group(members)
    if rank in members:
        whole = torch.randn(2, 4 * len(members), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        alone = [each.clone().requires_grad_() for each in whole]
        imix_nce_loss(*alone, reduction="sum").backward()
        own = slice(4 * members.index(rank), 4 * members.index(rank) + 4)
        query, key = (each[own].clone().requires_grad_() for each in whole)
        with on_hosts(hosts), ring(True):
            imix_nce_loss(query, key, reduction="sum", gather_distributed=True, process_group=group).backward()
        torch.testing.assert_close(query.grad, alone[0].grad[own], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(key.grad, alone[1].grad[own], rtol=1e-12, atol=1e-12)
    dist.barrier()


@pytest.mark.slow
def test_a_group_has_nodes_of_its_own(worlds):
    worlds[8].run(train_in_half, [0, 0, 0, 0, 1, 1, 1, 1])


def bytes_across(rank, size, hosts, believed):
    """Count what this rank sends to other hosts, forward and backward, where it takes the hosts for ``believed``."""
    kept, sent = dist.batch_isend_irecv, [0, 0]

    def count(operations):
        across = [each.tensor for each in operations if each.op is dist.isend and hosts[each.peer] != hosts[rank]]
        sent[is_backward] += sum(each.numel() * each.element_size() for each in across)
        return kept(operations)

    query, key = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    dist.batch_isend_irecv, is_backward = count, 0
    try:
        with on_hosts(believed), ring(True):
            loss = imix_nce_loss(query, key, gather_distributed=True)
            is_backward = 1
            loss.backward()
    finally:
        dist.batch_isend_irecv = kept
    return sent


def assert_striped(world, count, cards):
    hosts = [rank // cards for rank in range(count * cards)]
    flat = world.run(bytes_across, hosts, [0] * world.size)
    striped = world.run(bytes_across, hosts, hosts)
    block = 8 * 4 * 4
    ranks = count * cards
    at_boundary = [(ranks - 1) * block, (2 * ranks - 1) * block]
    assert [max(each) for each in zip(*flat, strict=True)] == at_boundary
    assert striped == [[(count - 1) * block, (2 * count - 1) * block]] * ranks
    for sent in striped:
        assert all(cards * own <= whole for own, whole in zip(sent, at_boundary, strict=True))


def test_each_rank_of_a_node_carries_its_share_across(worlds):
    assert_striped(worlds[4], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "cards"), [(2, 4), (4, 2)])
def test_each_of_eight_ranks_carries_its_share_across(worlds, count, cards):
    assert_striped(worlds[8], count, cards)


def know_nodes_once(rank, size):
    """Ranks of a group ask each other where they run at its first round, and never again."""
    group = dist.new_group([0, 1])
    rows = torch.randn(4, 3)
    asked, kept = [], route._host
    route._host = lambda: asked.append(rank) or kept()
    try:
        for _ in range(2 if rank < 2 else 0):
            with ring(True):
                imix_nce_loss(rows, rows, gather_distributed=True, process_group=group)
    finally:
        route._host = kept
    if rank < 2:
        assert asked == [rank]
        assert route._known[group] == [[0, 1]]  # Both run on this machine.
    dist.barrier()


def test_ranks_tell_their_hosts_once_per_group(worlds):
    worlds[3].run(know_nodes_once)


def know_nodes_under_another_default(rank, size):
    """Ranks tell their hosts on the device of the rows: on the default one they could not."""
    rows, told, kept = torch.randn(2, 4, 3, dtype=torch.float64), [], route.by_host
    route.by_host = lambda hosts: told.append(hosts) or kept(hosts)
    try:
        with on_hosts([7, -3]), ring(True), torch.device("meta"):
            loss = imix_nce_loss(*rows, gather_distributed=True, reduction="sum")
    finally:
        route.by_host = kept
    assert told == [[7, -3]]
    everyone = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(everyone, rows)
    query, key = (torch.nn.functional.normalize(each, dim=-1) for each in (rows[0], torch.cat(everyone, 1)[1]))
    target = torch.arange(4) + 4 * rank
    expected = torch.nn.functional.cross_entropy(query @ key.T / 0.2, target, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_ranks_tell_their_hosts_on_the_device_of_the_rows(worlds):
    worlds[2].run(know_nodes_under_another_default)
