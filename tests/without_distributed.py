"""Make torch a build without its distributed part: ``PYTHONPATH=tests pytest -p without_distributed``.

This torch was built with that part, and its tracers ask for operators whose Python half is then gone; so do lightly and
jagged tensors. What wants any of these is therefore left out: it would show the simulation, and not the package.
"""

import importlib.abc
import re
import sys

# torch asks for these to learn what it was built with, and binds the rest by calling them.
_STARTS = ("_c10d_init", "_rpc_init", "_dist_autograd_init", "_faulty_agent_init")
_WANTS_IT = re.compile(r"test_compile\.py|test_devices\.py|lightly|fake|export|make_fx|registered|absent_card|jagged")


class _BuiltWithout(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch.distributed":
            compiled = sys.modules["torch._C"]
            for start in _STARTS:
                if hasattr(compiled, start):
                    delattr(compiled, start)


sys.meta_path.insert(0, _BuiltWithout())


def pytest_configure(config):
    import pytest
    import torch

    def refuse(*_, **__):
        pytest.skip("this torch cannot compile without its distributed part")

    torch.compile = refuse


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if _WANTS_IT.search(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
