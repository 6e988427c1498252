import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "examples" / "integrations"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Import a script of examples/integrations as if it were run there; skip where its library is missing."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str, *libraries: str) -> ModuleType:
        for library in ("sklearn", *libraries):
            pytest.importorskip(library)
        return importlib.import_module(name)

    yield load
    for name in [*(path.stem for path in SCRIPTS.glob("*.py"))]:
        sys.modules.pop(name, None)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of embeddings whose rows pair up."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    return a, a + torch.randn(9, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def double():
    """Whatever is made without a dtype is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
