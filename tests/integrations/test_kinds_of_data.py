"""Data of other kinds: text, graphs, nested batches."""

import pytest
import torch
from falling import STEPS, falls

from imix_aug import VirtualLabels


def test_dict_batch(script):
    losses = script("with_dict_batch").main(60)
    assert falls(losses), losses


def test_torch_geometric(script):
    losses = script("with_torch_geometric", "torch_geometric").main(STEPS)
    assert falls(losses), losses


@pytest.fixture
def text(script):
    return script("with_sentence_transformers", "sentence_transformers", "transformers", "datasets", "accelerate")


def test_sentence_transformers(text):
    losses = text.main(STEPS)
    assert falls(losses), losses


def test_mixed_tokens_against_the_formula(text, monkeypatch):
    words, _ = text.sentence_pairs()
    model = text.tiny_model(words)
    loss = text.ManifoldIMixLoss(model)
    anchors = model.preprocess(["what does the red apple cost", "the blue pen", "price"])
    positives = model.preprocess(["red apple", "blue pen", "the price"])
    labels = VirtualLabels(torch.full((3,), 0.75), torch.tensor([1, 2, 0]))
    monkeypatch.setattr(loss.imix, "forward", lambda x: (0.75 * x + 0.25 * x[labels.partner], labels))

    mixed, _ = loss.mix_tokens(anchors)
    lengths = anchors["attention_mask"].sum(dim=1)
    assert mixed["attention_mask"].sum(dim=1).tolist() == torch.maximum(lengths, lengths[labels.partner]).tolist()
    table = model[0].model.get_input_embeddings().weight
    short, long = 2, 0  # row 2 is the shortest, its partner the longest: past its end only the partner is left
    torch.testing.assert_close(
        mixed["inputs_embeds"][short, -1], 0.25 * table[anchors["input_ids"][long, -1]], rtol=1e-6, atol=1e-7
    )

    model.eval()
    a, b = (model(dict(each))["sentence_embedding"] for each in (mixed, positives))
    log_p = (20 * torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T).log_softmax(dim=1)
    torch.testing.assert_close(loss([anchors, positives]), -(labels.dense() * log_p).sum(dim=1).mean())
