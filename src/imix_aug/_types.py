"""Types of arguments."""

from typing import Protocol


class Number(Protocol):
    """A real number of Python or NumPy, ``np.float32(0.2)`` say; a tensor is none."""

    def __float__(self) -> float: ...

    def conjugate(self) -> object: ...
