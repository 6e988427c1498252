"""Where to draw from when the user gave a generator: again in a recomputation, and otherwise in each loader worker."""

import functools
import hashlib
import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

# A draw in a checkpointed region is remembered by 5 kB on the CPU; a thousand of them wait for their backward pass.
_REMEMBERED = 1024
_states: OrderedDict[tuple[bytes, int], tuple[torch.Generator, Tensor | None]] = OrderedDict()


class Carried:
    """A generator on its way into a pickle: its device and state.

    PyTorch pickles the state as a tensor of its own, which is gone, shared memory and all, before a spawned worker
    opens it. One object for each generator, so that modules which share a generator share it again.
    """

    def __init__(self, device: torch.device, state: bytes) -> None:
        self.device, self.state = device, state

    def __reduce__(self) -> Any:
        return _unpacked, (str(self.device), self.state)


@functools.lru_cache(maxsize=_REMEMBERED)  # by identity; torch 2.4 lets nothing refer to a generator weakly
def _carried(generator: torch.Generator) -> Carried:
    return Carried(generator.device, b"")


def packed(generator: torch.Generator) -> Carried:
    """Return what becomes the generator again when it is unpickled or copied."""
    carried = _carried(generator)
    carried.state = generator.get_state().numpy().tobytes()
    return carried


def _unpacked(device: str, state: bytes) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def reseed_in_worker(generator: torch.Generator) -> None:
    """Give a loader worker's copy of a generator a seed of its own, made from its state and the worker's seed."""
    info = get_worker_info()
    if info is not None:
        material = generator.get_state().numpy().tobytes() + info.seed.to_bytes(8, "little", signed=False)
        digest = hashlib.blake2b(material, digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)


def ready(generator: torch.Generator) -> torch.Generator:
    """Return the generator to draw from: itself, or in a recomputation one in the state of the first computation.

    Activation checkpointing restores the state of PyTorch's own generator and of no other. So inside a checkpointed
    region each draw is remembered under that state, and moves it on by one number, so that no two share one.
    """
    recomputing = torch._C._current_graph_task_id() != -1
    if not recomputing and not _in_checkpoint():
        return generator
    place = hashlib.blake2b(torch.get_rng_state().numpy().tobytes()).digest(), id(generator)
    torch.empty((), dtype=torch.int64, device="cpu").random_()
    if recomputing:
        _, state = _states.get(place, (generator, None))
        if state is None:
            raise RuntimeError(
                "generator must be None in a checkpointed part whose first computation is not known again: "
                "checkpoint with preserve_rng_state=True and do not set PyTorch's own seed back between forward passes "
                "that wait for their backward pass, or mix before the checkpointed part"
            )
        again = torch.Generator(generator.device)
        again.set_state(state)
        return again
    state = generator.get_state()
    known = _states.pop(place, None)
    unclear = known is not None and (known[1] is None or not torch.equal(known[1], state))
    _states[place] = generator, None if unclear else state
    if len(_states) > _REMEMBERED:
        _states.popitem(last=False)
    return generator


def _in_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
