"""Compile the kernels for cards that are not there, just as launches on them would, and say what came of it.

Triton's wheel brings all that this needs: the compiler, ``ptxas`` and ``cuobjdump``. A driver stands for the card, and
Triton specialises the arguments itself.

    python tests/compiled_kernels.py 90 100            # one JSON object per kernel, for ``test_triton.py``
    python tests/compiled_kernels.py 90 100 --rarer    # rarer launches
    python tests/compiled_kernels.py 90 100 --table    # rows of the table in docs/performance.md: tile is rows kept x
                                                       # rows swept, warps, stages; shared memory is in KiB; then stack
                                                       # bytes, and the fewest and most instructions per logit of a step
"""

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import networkx  # torch brings it
import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from imix_aug._cross_entropy import triton_blocks, triton_sweep
from imix_aug._cross_entropy.columns import LeftOut
from imix_aug._mixing import triton as mix_triton

TOOLS = Path(nvidia.__file__).parent / "bin"
PROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
KERNELS = {
    triton_sweep: ("_sweep_keys", "_sweep_queries", "_merge"),
    triton_blocks: ("_logits_tile", "_softmax_row"),
    mix_triton: ("_blend_block", "_paste_block"),
}
BATCHES = (1, 16, 31, 64, 100, 128, 250, 256, 1000, 4096)


class Card:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # Triton keeps compiled kernels by device.

    def get_current_stream(self, device=None):
        return 0


class Compiler:
    """Takes a kernel's place and compiles where that would launch."""

    def __init__(self, kernel, compiled):
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            kernel = self.kernel.warmup(*arguments, grid=(1,), **options)
            self.compiled.setdefault(kernel.hash, (self.kernel.__name__, kernel, options))

        return launch


@contextlib.contextmanager
def card(capability):
    """Let every launch compile for the card; yields what was compiled."""
    compiled = {}
    driver.set_active(Card(capability))
    with contextlib.ExitStack() as patches:
        for module, names in KERNELS.items():
            for name in names:
                patches.enter_context(mock.patch.object(module, name, Compiler(getattr(module, name), compiled)))
        for module in (triton_sweep, triton_blocks):
            patches.enter_context(mock.patch.object(module, "capability", return_value=divmod(capability, 10)))
        patches.enter_context(mock.patch.object(triton_sweep, "multiprocessors", return_value=PROCESSORS[capability]))
        yield compiled


def sweep(n, d, dtype, *, left_out=2, negatives=0, ids=False, wants_mean=True, bounded=True, both=False):
    """Both sweeps over a batch, as a loss and its gradients launch them; a learnt temperature bounds no logits.

    Both directions of a loss share the second sweep.
    """
    query, key, more = (torch.empty(count, d, dtype=dtype) for count in (n, n, negatives))
    columns = torch.empty(n, left_out, dtype=torch.int64)
    numbers = [torch.empty(count, dtype=torch.int64) for count in (n, n, negatives)] if ids else []
    without = LeftOut(columns, *numbers)
    arguments = query, key, more if negatives else None, without, wants_mean
    if d <= triton_sweep.MAX_DIM:
        way = triton_sweep
        way.sweep_keys(*arguments, bounded)
    else:
        way = triton_blocks
        way.sweep_keys(*arguments)
    way.sweep_queries(query, key, without, torch.empty(n), torch.empty(n), torch.empty(n) if both else None)


def mix(dtype):
    x, n = torch.empty(8, 3, 32, 32, dtype=dtype), 8
    partner, lam = torch.arange(n), torch.empty(n)
    mix_triton.blend(x, partner, lam, lam, torch.empty_like(x))
    boxes = torch.empty(n, 2, 2, dtype=torch.int64)
    for given in (None, boxes):
        mix_triton.paste(x, partner, boxes, given, torch.empty_like(x), (2, 3))


def ordinary():
    """What is launched in most uses: i-Mix's two left-out columns, rows of a usual width, with a queue or without."""
    for dtype, d in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float32, 128)):
        yield f"{str(dtype)[6:]} {d}", partial(sweep, 2048, d, dtype, negatives=4096)
    yield "bfloat16 128, both directions", partial(sweep, 2048, 128, torch.bfloat16, both=True)


def rarer():
    """Other launches."""
    for d in (64, 128):
        yield f"float32 {d}, both directions", partial(sweep, 2048, d, torch.float32, both=True)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        kind = str(dtype)[6:]
        for d in (16, 32, 100, 200):
            yield f"{kind} {d}", partial(sweep, 2048, d, dtype)
        for d in (64, 128, 256):
            for count, ids in ((1, False), (2, False), (4, False), (2, True), (6, True)):
                name = f"{kind} {d}, {count} left out{', ids' if ids else ''}"
                how = {"left_out": count, "ids": ids, "wants_mean": count != 1, "bounded": count != 2}
                yield name, partial(sweep, 2048, d, dtype, negatives=4096, **how)
        for d in (300, 768):
            yield f"{kind} {d}", partial(sweep, 300, d, dtype, negatives=500, ids=True)
        yield f"{kind} images", partial(mix, dtype)


def facts(name, kernel, options):
    """Return what the compiler made of a kernel."""
    unit = next((unit for unit in ("wgmma", "tcgen05.mma", "mma.sync") if unit in kernel.asm["ptx"]), None)
    usage = cuobjdump("-res-usage", kernel)
    return {
        "kernel": name,
        "tile": [options.get(key) for key in ("KEPT", "SWEPT", "num_warps", "num_stages")],
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": kernel.metadata.shared,
        "unit": unit,
        "step": instructions_per_step(cuobjdump("-sass", kernel)) if unit else None,
    }


def cuobjdump(option, kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions_per_step(code):
    """Return the fewest and the most instructions of one turn of the loop that holds the matrix products.

    Fewest: past every branch that a step without masks passes by. Waiting is counted once.
    """
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)]
    place = {at: number for number, (at, _) in enumerate(lines)}
    flow = networkx.DiGraph()
    for number, (_, text) in enumerate(lines):
        jump = re.search(r"\bBRA(?:\.\w+)*\s+(?:(U?!?U?P\d),)?.*?0x([0-9a-f]+)", text)
        if jump:
            flow.add_edge(number, place[int(jump[2], 16)])
        always = jump and not text.startswith("@") and jump[1] is None
        if not (always or text.startswith("EXIT")) and number + 1 < len(lines):
            flow.add_edge(number, number + 1)
    flow = flow.subgraph({0, *networkx.descendants(flow, 0)}).copy()
    above = networkx.immediate_dominators(flow, 0)
    back = [(last, first) for last, first in flow.edges if first <= last and _dominates(above, first, last)]
    flow.remove_edges_from(back)
    loops = []
    for last, first in back:
        body = {first, last, *networkx.descendants(flow, first) & networkx.ancestors(flow, last)}
        products = sum("MMA" in lines[number][1] for number in body)
        loops.append((products, -len(body), first, last, body))
    products, _, first, last, body = max(loops, default=(0, 0, 0, 0, set()))
    if not products:
        return None
    inside = flow.subgraph(body)
    fewest = networkx.shortest_path_length(inside, first, last)
    return [fewest + 1, _longest_path(inside, first, last) + 1]


def _dominates(above, node, other):
    while other != above.get(other, other):
        if other == node:
            return True
        other = above[other]
    return other == node


def _longest_path(flow, first, last):
    length = {first: 0}
    for node in networkx.topological_sort(flow):
        if node in length:
            for following in flow.successors(node):
                length[following] = max(length.get(following, 0), length[node] + 1)
    return length[last]


def kernels_for_many_batches(capability):
    """Return how many kernels ten batch sizes take, each without negatives and with a queue."""
    with card(capability) as compiled:
        for n in BATCHES:
            for negatives in (0, 1000, 4096):
                sweep(n, 128, torch.bfloat16, negatives=negatives)
    return sorted(name for name, _, _ in compiled.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("capabilities", type=int, nargs="+")
    parser.add_argument("--rarer", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for capability in options.capabilities:
        for case, launch in rarer() if options.rarer else ordinary():
            with card(capability) as compiled:
                launch()
            for each in compiled.values():
                fact = {"capability": capability, "case": case, **facts(*each)}
                if not options.table:
                    print(json.dumps(fact), flush=True)
                elif fact["step"]:
                    print(row(fact), flush=True)
    if not options.table and not options.rarer:
        capability = options.capabilities[-1]
        print(json.dumps({"capability": capability, "batches": kernels_for_many_batches(capability)}))


def row(fact):
    kept, swept, warps, stages = fact["tile"]
    per_logit = " to ".join(f"{count * 32 * warps / (kept * swept):.1f}" for count in fact["step"])
    tile = f"{kept} x {swept}, {warps}, {stages}"
    cells = [fact["capability"], fact["case"], fact["kernel"], tile, fact["registers"], fact["shared"] // 1024]
    return "| " + " | ".join(map(str, [*cells, fact["stack"], per_logit])) + " |"


if __name__ == "__main__":
    main()
