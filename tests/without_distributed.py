"""Make torch a build without its distributed part: ``PYTHONPATH=tests pytest -p without_distributed``."""

import importlib.abc
import sys

# torch asks for these to learn what it was built with, and binds the rest by calling them.
_STARTS = ("_c10d_init", "_rpc_init", "_dist_autograd_init", "_faulty_agent_init")


class _BuiltWithout(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch.distributed":
            compiled = sys.modules["torch._C"]
            for start in _STARTS:
                if hasattr(compiled, start):
                    delattr(compiled, start)


sys.meta_path.insert(0, _BuiltWithout())
