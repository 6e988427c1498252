"""Our checks catch the field's silent gradient faults, each put into our own code."""

import faults
import pytest
import test_robustness
from test_distributed import enqueue_on_all_ranks, train_ddp

GRADIENT_FAULTS = {
    fault.__name__: fault
    for fault in (
        faults.gather_without_gradient,
        faults.gather_with_own_gradient_alone,
        faults.gradient_divided_by_the_world_size,
        faults.loss_averaged_twice,
    )
}


def is_caught(rank, size, name, kind):
    with GRADIENT_FAULTS[name]():
        try:
            train_ddp(rank, size, kind, "mean", False)
        except AssertionError as error:
            return "not close" in str(error)
    return False


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["npair", "ntxent", "supcon"])
@pytest.mark.parametrize("name", GRADIENT_FAULTS)
def test_a_wrong_gradient_is_caught_on_every_rank(worlds, name, kind, size):
    assert all(worlds[size].run(is_caught, name, kind))


def fill_with_fault(rank, size):
    with faults.queue_that_differs_across_ranks():
        try:
            enqueue_on_all_ranks(rank, size)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("size", [2, 3])
def test_a_queue_that_differs_is_caught_on_every_rank(worlds, size):
    assert all(worlds[size].run(fill_with_fault))


@pytest.mark.parametrize("name", test_robustness.CHECKPOINTED)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_lost_generator_state_is_caught(name, use_reentrant):
    with faults.generator_state_lost_on_recomputation(), pytest.raises(AssertionError):
        test_robustness.test_a_recomputation_draws_the_same_mix(name, use_reentrant, True)


def test_the_checks_pass_once_the_faults_are_gone(worlds):
    worlds[2].run(train_ddp, "npair", "mean", False)
    worlds[2].run(enqueue_on_all_ranks)
