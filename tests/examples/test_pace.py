"""How fast a run goes: against a clock that the test moves by hand."""

import pytest
import runner.pace
import torch
from runner.pace import Pace
from torch import nn


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, and seconds of them on the CPU."""
    now = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(runner.pace.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(runner.pace.time, "process_time", lambda: now["cpu"])
    return now


def run(pace, net, clock, steps):
    pace.start()
    for _ in range(steps):
        clock["wall"] += 1  # augment
        net(torch.zeros(1, 2))
        clock["wall"] += 3  # the network, backwards too
        clock["cpu"] += 2
        pace.step()


def test_rows_and_the_share_outside_the_network(clock):
    net = nn.Linear(2, 2)
    pace = Pace(net, torch.device("cpu"), batch_size=8)
    run(pace, net, clock, steps=250)
    assert pace.summary() == {
        "seconds": 1000,
        "cpu_seconds": 500,
        "rows_per_second": 2,
        "outside_network": 0.25,
    }
    assert str(pace) == "2 rows/s, 25% of the time outside the network"


def test_what_lies_between_two_runs_does_not_count(clock):
    net = nn.Linear(2, 2)
    pace = Pace(net, torch.device("cpu"), batch_size=8)
    run(pace, net, clock, steps=3)
    state = pace.state_dict()
    clock["wall"] += 5000
    clock["cpu"] += 5000
    resumed = Pace(net, torch.device("cpu"), batch_size=8)
    resumed.load_state_dict(state)
    run(resumed, net, clock, steps=2)
    assert resumed.summary() == {
        "seconds": 20,
        "cpu_seconds": 10,
        "rows_per_second": 2,
        "outside_network": 0.25,
    }
