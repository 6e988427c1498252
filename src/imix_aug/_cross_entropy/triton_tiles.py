"""How much a program holds at once, by card.

The sum that a program keeps is (rows kept x D) float32 in registers, beside it a tile of logits; swept rows lie in
shared memory. Each tile here is, as compiled, one of the fewest instructions per logit among those that fit the card's
shared memory and spill no register where logits are bounded (``tests/compiled_kernels.py``). No clock was asked: no
card was at hand.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Rows kept, rows swept in a step, warps, and steps that are loaded ahead."""

    kept: int
    swept: int
    warps: int
    stages: int


# By the bytes of an element and the width of a row, for the sweep over keys and the one over queries. Where that spills
# registers for both directions of a loss, with two factors per logit, a third tile is for them.
_Tiles = dict[tuple[int, int], tuple[Tile, ...]]

# Matrix units that read shared memory and leave sums in registers.
_HOPPER: _Tiles = {
    (2, 64): (Tile(128, 128, 8, 3), Tile(128, 128, 8, 3)),
    (2, 128): (Tile(128, 128, 8, 2), Tile(128, 128, 8, 2)),
    (2, 256): (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (4, 64): (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (4, 128): (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (4, 256): (Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
}

# Matrix units with a memory of their own for sums.
_BLACKWELL: _Tiles = {
    (2, 64): (Tile(128, 128, 8, 2), Tile(128, 128, 8, 2)),
    (2, 128): (Tile(128, 128, 8, 2), Tile(128, 128, 8, 2), Tile(128, 64, 8, 2)),
    (2, 256): (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (4, 64): (Tile(128, 128, 8, 2), Tile(128, 128, 8, 2), Tile(128, 64, 8, 2)),
    (4, 128): (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (4, 256): (Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
}

# Matrix units whose operands take registers too.
_AMPERE: _Tiles = {
    (2, 64): (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
    (2, 128): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    (2, 256): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    (4, 64): (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
    (4, 128): (Tile(128, 32, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)),
    (4, 256): (Tile(64, 32, 8, 2), Tile(32, 32, 4, 1)),
}

# The same with 99 KiB of shared memory.
_SMALL: _Tiles = {
    **_AMPERE,
    (2, 256): (Tile(64, 64, 8, 2), Tile(64, 64, 4, 2)),
    (4, 256): (Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
}

# The same compiled for another set of instructions: the tile above spills there.
_SMALL_BLACKWELL: _Tiles = {**_SMALL, (2, 256): (_SMALL[2, 256][0], Tile(64, 32, 4, 2))}

# For a compiler that needs more shared memory than the one these tiles were chosen with.
_LAST = Tile(16, 16, 4, 1)


class BlockTile(NamedTuple):
    """Rows and columns of logits, elements of D multiplied at once, warps, and how many of these are loaded ahead."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def tiles_for_keys(capability: tuple[int, int], element_size: int, width: int) -> list[Tile]:
    """Return the tile that a program keeps of the queries while it sweeps over the keys, and one that always fits."""
    return [_card(capability)[element_size, max(64, width)][0], _LAST]


def tiles_for_queries(capability: tuple[int, int], element_size: int, width: int, both: bool) -> list[Tile]:
    """Return the tile that a program keeps of the keys while it sweeps over the queries, and one that always fits."""
    tiles = _card(capability)[element_size, max(64, width)]
    return [tiles[-1] if both else tiles[1], _LAST]


def tiles_for_blocks(capability: tuple[int, int]) -> list[BlockTile]:
    """Return the tile of logits that a program multiplies in whole, and one that always fits."""
    large, small, last = BlockTile(128, 256, 64, 8, 3), BlockTile(128, 128, 32, 4, 3), BlockTile(64, 64, 32, 4, 2)
    if capability[0] in (9, 10, 11):
        large = large._replace(stages=4)
    return [small if _card(capability) in (_SMALL, _SMALL_BLACKWELL) else large, last]


def _card(capability: tuple[int, int]) -> _Tiles:
    if capability[0] == 9:
        return _HOPPER
    if capability[0] in (10, 11):
        return _BLACKWELL
    if capability[0] == 12:
        return _SMALL_BLACKWELL
    return _AMPERE if capability in ((8, 0), (8, 7)) else _SMALL
