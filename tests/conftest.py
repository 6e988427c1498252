import multiprocessing
import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# Plugins that take something away from the process that imports them, as doctest collection would; what needs Triton.
collect_ignore = ["without_distributed.py", "without_triton.py", "compiled_kernels.py"]
if not torch.distributed.is_available():
    collect_ignore += [
        "test_distributed.py",
        "test_distributed_arguments.py",
        "test_gradient_faults.py",
        "test_mesh.py",
    ]
    collect_ignore += ["examples/test_ranks.py"]

if sys.platform == "linux":  # What all processes want that the tests start is imported once.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "pytest", "imix_aug"])

settings.register_profile(
    "default", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
# For mutate.py, which asks whether a test fails: nobody reads the smallest example.
settings.register_profile("unshrunk", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def worlds():
    """Processes joined by gloo, by their number; none is started before it is needed."""
    if sys.platform != "linux":
        pytest.skip("several processes are tested on Linux")
    from ranks import World  # Some tests run on a torch without its distributed part.

    opened = {size: World(size) for size in (2, 3, 4, 8)}
    yield opened
    for world in opened.values():
        world.stop()
