"""Hide Triton, as where it is not installed; as a plugin of pytest: ``PYTHONPATH=tests pytest -p without_triton``."""

import sys

sys.modules["triton"] = None  # Neither found nor imported from now on.
