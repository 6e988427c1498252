"""Hugging Face's Trainer with i-Mix: the model mixes, and returns its loss as Trainer expects."""

import tempfile

import torch
from digits import encoder, images, view
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from imix_aug import IMix, imix_nce_loss


class Contrastive(nn.Module):
    """An encoder under an N-pair loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = encoder()
        self.imix = IMix(alpha=1.0)  # i-Mix: a submodule, so that it rests while Trainer evaluates

    def forward(self, view_1: Tensor, view_2: Tensor) -> dict[str, Tensor]:
        x, labels = self.imix(view_1)  # i-Mix
        key = self.net(view_2)
        return {"loss": imix_nce_loss(self.net(x), key, labels, temperature=0.2), "embeddings": key}  # i-Mix


class TwoViews(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Digits, each as a dict of two views."""

    def __init__(self) -> None:
        self.images = images()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"view_1": view(self.images[index]), "view_2": view(self.images[index])}


def main(steps: int = 200) -> list[float]:
    """Train; return the losses that Trainer logged."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=128,
            dataloader_drop_last=True,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model=Contrastive(), args=arguments, train_dataset=TwoViews())
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
