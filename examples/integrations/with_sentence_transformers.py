"""sentence-transformers' MultipleNegativesRankingLoss with i-Mix: token embeddings are mixed (manifold i-Mix).

Token indices cannot be mixed, their embeddings can. A BERT of two layers, built from a config with random weights,
keeps this script free of downloads; put any SentenceTransformer in its place.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from imix_aug import IMix, IMixLoss, VirtualLabels


class ManifoldIMixLoss(nn.Module):
    """A loss for SentenceTransformerTrainer: mixes the anchors' token embeddings, leaves the positives alone."""

    def __init__(self, model: SentenceTransformer, alpha: float = 1.0) -> None:
        super().__init__()
        self.model = model
        ranking = MultipleNegativesRankingLoss(model)
        self.imix = IMix(alpha, per_sample=False)  # i-Mix: the loss is one number per batch, so lambda is too
        self.criterion = IMixLoss(lambda a, b: ranking.compute_loss_from_embeddings([a, b], None))  # i-Mix

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        anchors, positives = sentence_features
        mixed, virtual_labels = self.mix_tokens(anchors)  # i-Mix
        a, b = (self.model(features)["sentence_embedding"] for features in (mixed, positives))
        return self.criterion(a, b, virtual_labels)  # i-Mix

    def mix_tokens(self, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], VirtualLabels]:
        """Mix token embeddings; a mixed sentence is as long as the longer of its two."""
        mask = features["attention_mask"]
        embeddings = self.model[0].model.get_input_embeddings()(features["input_ids"]) * mask.unsqueeze(-1)
        mixed, labels = self.imix(embeddings)
        return {"inputs_embeds": mixed, "attention_mask": torch.maximum(mask, mask[labels.partner])}, labels


def tiny_model(words: list[str]) -> SentenceTransformer:
    """A SentenceTransformer with random weights and one token a word."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        Path(folder, "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
        BertTokenizerFast(vocab=str(Path(folder, "vocab.txt"))).save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
        BertModel(config).save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder), Pooling(32)])


def sentence_pairs() -> tuple[list[str], Dataset]:
    """Questions and answers about the prices of things."""
    things = ["apple", "bread", "door", "engine", "flower", "guitar", "hammer", "jacket", "kettle", "lamp", "mirror"]
    pairs = [
        {"anchor": f"what does the {color} {thing} cost", "positive": f"the price of a {thing} in {color}"}
        for thing in things
        for color in ("red", "blue", "green", "white")
    ]
    words = sorted({word for pair in pairs for sentence in pair.values() for word in sentence.split()})
    return words, Dataset.from_list(pairs)


def main(steps: int = 60) -> list[float]:
    """Train; return the losses that the trainer logged."""
    words, dataset = sentence_pairs()
    model = tiny_model(words)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        loss = ManifoldIMixLoss(model)  # i-Mix: was MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
