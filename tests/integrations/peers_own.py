"""Run other libraries' own tests of their losses with ours in the places of theirs.

    python tests/integrations/peers_own.py lightly CHECKOUT
    python tests/integrations/peers_own.py pytorch-metric-learning CHECKOUT
    python tests/integrations/peers_own.py info-nce-pytorch CHECKOUT

The library is the one that is installed; a checkout of its repository brings the tests, which no package holds. They
run twice, with the library's losses and with adapters around ours, from the same seeds; every test that ends otherwise
with ours is listed. What came out stands in docs/integrations/index.md.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from imix_aug import NegativeQueue, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss


def own_key_and_negatives(query, key, **how):
    """Contrast each row with its own key and the negatives alone: one id for all leaves other rows' keys out."""
    return imix_nce_loss(query, key, ids=torch.zeros(len(query), dtype=torch.int64, device=query.device), **how)


# lightly


class NTXentLoss(nn.Module):
    """lightly's: SimCLR without a memory bank, MoCo with one."""

    def __init__(self, temperature=0.5, memory_bank_size=0, gather_distributed=False):
        super().__init__()
        if gather_distributed and not dist.is_available():
            raise ValueError("gather_distributed is True, but this torch has no distributed part")
        self.size = memory_bank_size if isinstance(memory_bank_size, int) else memory_bank_size[0]
        self.how, self.queue = {"temperature": temperature, "gather_distributed": gather_distributed}, None

    def forward(self, out0, out1):
        if not self.size:
            return imix_ntxent_loss(out0, out1, **self.how)
        if self.queue is None:
            self.queue = NegativeQueue(self.size, out1.shape[1])
        loss = own_key_and_negatives(out0, out1, negatives=self.queue.negatives, **self.how)
        if out0.requires_grad:
            self.queue.enqueue(F.normalize(out1.detach()), gather_distributed=self.how["gather_distributed"])
        return loss


def lightly():
    import lightly.loss

    lightly.loss.NTXentLoss = NTXentLoss


# pytorch-metric-learning: reducers and all distances but the cosine stay its own


def metric_learning():
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.distances import CosineSimilarity

    def ours(loss, indices_tuple):
        return indices_tuple is None and isinstance(loss.distance, CosineSimilarity)

    def told(values, indices, kind, like):
        return {"loss": {"losses": values.to(like.dtype), "indices": indices, "reduction_type": kind}}

    def positives(labels, ref_labels, is_same):
        pairs = labels[:, None] == ref_labels
        return pairs.fill_diagonal_(False) if is_same else pairs

    class NTXentLoss(losses.NTXentLoss):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            if not ours(self, indices_tuple):
                return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            anchors, others = positives(labels, ref_labels, ref_emb is embeddings).nonzero().unbind(1)
            if not len(anchors):
                return self.zero_losses()
            each = [
                imix_nce_loss(
                    embeddings[[anchor]],
                    ref_emb[[other]],
                    temperature=self.temperature,
                    negatives=ref_emb,
                    ids=labels[[anchor]],
                    negative_ids=ref_labels,
                )
                for anchor, other in zip(anchors.tolist(), others.tolist(), strict=True)
            ]
            return told(torch.stack(each), (anchors, others), "pos_pair", embeddings)

    class SupConLoss(losses.SupConLoss):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            if not ours(self, indices_tuple):
                return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            if ref_emb is embeddings:
                how = {"temperature": self.temperature, "reduction": "none"}
                rows = imix_supcon_loss(embeddings, None, labels, **how)
            else:
                pairs = positives(labels, ref_labels, False)
                rows = torch.stack(
                    [self.row(row, ref_emb, mates) for row, mates in zip(embeddings, pairs, strict=True)]
                )
            return told(rows, torch.arange(len(rows)), "element", embeddings)

        def row(self, row, ref_emb, mates):
            """The mean over its positives of a softmax over all columns, one of which is the key."""
            columns = torch.arange(len(ref_emb))
            each = [
                imix_nce_loss(
                    row[None], ref_emb[[mate]], temperature=self.temperature, negatives=ref_emb[columns != mate]
                )
                for mate in mates.nonzero()[:, 0].tolist()
            ]
            return torch.stack(each).mean() if each else row.sum().float() * 0

    losses.NTXentLoss, losses.SupConLoss = NTXentLoss, SupConLoss


# info-nce-pytorch


class InfoNCE(nn.Module):
    def __init__(self, temperature=0.1, reduction="mean", negative_mode="unpaired"):
        super().__init__()
        self.how = {"temperature": temperature, "reduction": reduction}
        self.name = "hard_negatives" if negative_mode == "paired" else "negatives"

    def forward(self, query, positive_key, negative_keys=None):
        if negative_keys is None:
            return imix_nce_loss(query, positive_key, **self.how)
        return own_key_and_negatives(query, positive_key, **{self.name: negative_keys}, **self.how)


def info_nce():
    import info_nce

    info_nce.InfoNCE = InfoNCE


# Who tests what with what


class Outcomes:
    """A plugin of pytest that seeds every test, and keeps how each ended: an empty string, or why it failed."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_setup(self, item):
        import numpy

        torch.manual_seed(0)
        numpy.random.seed(0)  # noqa: NPY002 -- the generator that these tests draw from

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        why = "" if report.passed else f"{crash.message if crash else report.longrepr}".strip().split("\n")[0]
        name = report.nodeid + (f" ({report.context.msg})" if hasattr(report, "context") else "")
        self.found[name] = self.found.get(name) or why


def by_pytest(files):
    outcomes = Outcomes()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", *map(str, files)], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"these tests do not start:\n{output.getvalue()[-2000:]}")
    return outcomes.found


def by_script(files):
    """The script compares a list of losses with another, and then plots: let it compare them one by one."""
    import numpy

    (file,) = files
    spec = importlib.util.spec_from_file_location("script_of_info_nce", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.plot_results = lambda results: None
    numpy.random.seed(0)  # noqa: NPY002
    found = {}
    for kind, is_paired in (("paired", True), ("unpaired", False)):
        for number, both in enumerate(zip(*script.get_results(paired_neg=is_paired), strict=True)):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    script.check_results(*([each] for each in both))
            except AssertionError as error:
                found[f"{file.name}::{kind}-{number}"] = str(error) or "AssertionError"
            else:
                found[f"{file.name}::{kind}-{number}"] = ""
    return found


PEERS = {
    "lightly": (lightly, by_pytest, ["tests/loss/test_ntx_ent_loss.py", "tests/loss/test_NTXentLoss.py"]),
    "pytorch-metric-learning": (
        metric_learning,
        by_pytest,
        [f"tests/losses/test_{name}_loss.py" for name in ("ntxent", "supcon", "self_supervised")],
    ),
    "info-nce-pytorch": (info_nce, by_script, ["imgs/test.py"]),
}


def outcomes(peer, checkout, losses):
    """Run a checkout's tests in this process, with "theirs" or with "ours"."""
    replace, run, names = PEERS[peer]
    files = [checkout / name for name in names if (checkout / name).exists()]
    if not files:
        raise SystemExit(f"{checkout} has none of {', '.join(names)}: wanted a checkout of {peer}")
    if losses == "ours":
        replace()
    return run(files)


def in_a_process_of_its_own(peer, checkout, losses):
    command = [sys.executable, __file__, peer, str(checkout), "--only", losses]
    settings = {"TEST_DEVICE": "cpu", "MPLBACKEND": "agg"} | os.environ
    run = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(run.returncode)
    return json.loads(run.stdout)


def report(theirs, ours):
    """Return a line per file, and one per test that ends otherwise with ours."""
    tests, passed = Counter(), {"theirs": Counter(), "ours": Counter()}
    for losses, found in (("theirs", theirs), ("ours", ours)):
        for name, why in found.items():
            passed[losses][name.partition("::")[0]] += not why
    tests.update(name.partition("::")[0] for name in theirs.keys() | ours.keys())
    lines = ["| file | tests | pass with theirs | pass with ours |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {file} | {tests[file]} | {passed['theirs'][file]} | {passed['ours'][file]} |" for file in sorted(tests)
    ]
    for name in sorted(theirs.keys() | ours.keys()):
        ends = [found.get(name, "has not run") for found in (theirs, ours)]
        if bool(ends[0]) != bool(ends[1]):
            lines.append(f"{name}: theirs: {ends[0] or 'passes'}; ours: {ends[1] or 'passes'}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", choices=("theirs", "ours"), help="print these outcomes as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(outcomes(options.peer, options.checkout, options.only)))
    else:
        both = (in_a_process_of_its_own(options.peer, options.checkout, losses) for losses in ("theirs", "ours"))
        print("\n".join(report(*both)))
