"""solo-learn's SimCLR: the projections are stacked, with an index per row; an online classifier learns beside."""

# solo/methods/simclr.py
import torch
import torch.nn.functional as F
from torch import nn


def simclr_loss_func(z, indexes, temperature=0.1):
    z = F.normalize(z, dim=-1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    positive = (indexes[:, None] == indexes).fill_diagonal_(False)
    return -logits.log_softmax(dim=1)[positive].mean()


class BaseMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_large_crops, self.num_small_crops = 2, 0
        self.backbone, self.classifier = nn.Sequential(nn.Linear(12, 16), nn.ReLU()), nn.Linear(16, 3)

    def training_step(self, batch, batch_idx):
        _, X, targets = batch
        outs = [self(x) for x in X]
        out = {key: [each[key] for each in outs] for key in outs[0]}
        out["loss"] = sum(F.cross_entropy(self.classifier(f.detach()), targets) for f in out["feats"]) / 2
        return out


class SimCLR(BaseMethod):
    def __init__(self, temperature=0.2):
        super().__init__()
        self.temperature = temperature
        self.projector = nn.Linear(16, 6)

    def forward(self, X):
        feats = self.backbone(X)
        return {"feats": feats, "z": self.projector(feats)}

    def training_step(self, batch, batch_idx):
        indexes = batch[0]
        out = super().training_step(batch, batch_idx)
        class_loss = out["loss"]
        z = torch.cat(out["z"])
        n_augs = self.num_large_crops + self.num_small_crops
        indexes = indexes.repeat(n_augs)
        nce_loss = simclr_loss_func(
            z,
            indexes=indexes,
            temperature=self.temperature,
        )
        return nce_loss + class_loss


build = SimCLR


def train(model, loader, optimizer):
    losses = []
    for step, views in enumerate(loader):
        indexes = torch.arange(len(views[0]))
        loss = model.training_step([indexes, list(views), indexes % 3], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
