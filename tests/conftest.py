import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Plugins that take something away from the process that imports them, as doctest collection would.
collect_ignore = ["without_distributed.py", "without_triton.py"]

settings.register_profile(
    "default", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
