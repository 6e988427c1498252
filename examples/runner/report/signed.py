"""Differences as they are written, with their sign."""

from __future__ import annotations


def signed(points: float, digits: int = 1) -> str:
    """Write a difference; one that rounds to nothing has no sign, since either would say who is ahead."""
    rounded = round(points, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
