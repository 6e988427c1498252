"""PyTorch Lightning with i-Mix: one process, or several under DDP with `--devices 2`, without a change."""

import argparse

import pytorch_lightning as pl
import torch
from digits import encoder, images, view
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from imix_aug import IMix, imix_nce_loss


class Contrastive(pl.LightningModule):
    """An encoder under an N-pair loss."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = encoder()
        self.imix = IMix(alpha=1.0)  # i-Mix: a submodule, so that it rests while Lightning validates

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        view_1, view_2 = view(batch[0]), view(batch[0])
        x, labels = self.imix(view_1)  # i-Mix
        loss = imix_nce_loss(self.net(x), self.net(view_2), labels, temperature=0.2, gather_distributed=True)  # i-Mix
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main(devices: int = 1, steps: int = 200) -> float:
    """Train; return the last loss."""
    loader = DataLoader(TensorDataset(images()), batch_size=128, shuffle=True, drop_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Contrastive(), loader)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would abort an interpreter that ends before them
    return trainer.callback_metrics["loss"].item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1, help="processes on the CPU")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    print(f"last loss {main(args.devices, args.steps):.3f}")
