"""A large batch over several processes, each in chunks and with the keys of all: DDP, Accelerate, Lightning.

    torchrun --nproc-per-node 2 examples/recipes/several_processes.py torchrun
    torchrun --nproc-per-node 2 examples/recipes/several_processes.py accelerate
    torchrun --nproc-per-node 2 examples/recipes/several_processes.py lightning

The module takes both views and returns the loss, so that DDP sees one forward and one backward pass per step; mixing,
chunks and loss are inside, and the frameworks differ in their own lines alone. (On cards `accelerate launch` does what
torchrun does; on the CPU it wants MPI.) Without mixing (`--alpha 0`) all end with the weights of one process that has
the whole batch.
"""

import argparse
import os

import torch
from large_batch import encode_in_chunks
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from imix_aug import IMix, imix_nce_loss


class Contrastive(nn.Module):
    """An encoder, and the loss of two views of a batch that meets those of the other processes."""

    def __init__(self, alpha: float = 1.0, rows: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 16))
        self.imix, self.rows = IMix(alpha=alpha), rows  # i-Mix

    def forward(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        mixed, labels = self.imix(view_1)  # i-Mix
        query, key = encode_in_chunks(self.net, torch.cat([mixed, view_2]), self.rows).chunk(2)
        return imix_nce_loss(query, key, labels, temperature=0.2, gather_distributed=True)  # i-Mix


def views(rows: int = 512) -> TensorDataset:
    """Return two noisy looks at points of eight clusters."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(8, 8, generator=generator)[torch.randint(8, (rows,), generator=generator)]
    return TensorDataset(*(points + 0.3 * torch.randn(rows, 8, generator=generator) for _ in range(2)))


def with_torchrun(model: Contrastive, batch_size: int) -> None:
    """Train under plain DistributedDataParallel."""
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    ddp, data = DistributedDataParallel(model), views()
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for view_1, view_2 in DataLoader(data, batch_size, sampler=DistributedSampler(data, shuffle=False)):
        optimizer.zero_grad()
        ddp(view_1, view_2).backward()
        optimizer.step()
    dist.barrier()  # lets gloo's threads drop their last tensors: a Python that ends before them aborts
    dist.destroy_process_group()


def with_accelerate(model: Contrastive, batch_size: int) -> None:
    """Train under Hugging Face Accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(views(), batch_size))
    for view_1, view_2 in loader:
        optimizer.zero_grad()
        accelerator.backward(prepared(view_1, view_2))
        optimizer.step()
    accelerator.end_training()


def with_lightning(model: Contrastive, batch_size: int) -> None:
    """Train under PyTorch Lightning."""
    import pytorch_lightning as pl

    class Training(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.model(*batch)

        def train_dataloader(self) -> DataLoader:  # a sampler of Lightning's own would shuffle
            data = views()
            return DataLoader(data, batch_size, sampler=DistributedSampler(data, shuffle=False))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False
    )
    trainer.fit(Training())
    torch.distributed.destroy_process_group()


LAUNCHERS = {"torchrun": with_torchrun, "accelerate": with_accelerate, "lightning": with_lightning}


def main() -> None:
    """Train for one pass over the data; save the encoder where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("launcher", choices=LAUNCHERS)
    parser.add_argument("--batch-size", type=int, default=64, help="rows per process and step")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--out", help="file for the encoder's weights, which every process writes alike: {rank} in it")
    options = parser.parse_args()
    model = Contrastive(options.alpha)
    LAUNCHERS[options.launcher](model, options.batch_size)
    if options.out:
        torch.save(model.net.state_dict(), options.out.format(rank=os.environ.get("RANK", "0")))


if __name__ == "__main__":
    main()
