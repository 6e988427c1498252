"""solo-learn's BYOL: the base class feeds every crop to online network, target network and an online classifier."""

# solo/methods/byol.py
import copy

import torch
import torch.nn.functional as F
from torch import nn


def byol_loss_func(p, z, simplified=True):
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=-1).mean()


class BaseMomentumMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_large_crops = self.num_crops = 2
        self.backbone, self.projector = nn.Sequential(nn.Linear(12, 16), nn.ReLU()), nn.Linear(16, 6)
        self.classifier = nn.Linear(16, 3)
        self.momentum_backbone, self.momentum_projector = (
            copy.deepcopy(part).requires_grad_(False) for part in (self.backbone, self.projector)
        )

    def training_step(self, batch, batch_idx):
        _, X, targets = batch
        outs = [self(x) for x in X]
        out = {key: [each[key] for each in outs] for key in outs[0]}
        out["loss"] = sum(F.cross_entropy(self.classifier(f.detach()), targets) for f in out["feats"]) / 2
        with torch.no_grad():
            out["momentum_z"] = [self.momentum_projector(self.momentum_backbone(x)) for x in X]
        return out


class BYOL(BaseMomentumMethod):
    def __init__(self):
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, X):
        feats = self.backbone(X)
        z = self.projector(feats)
        return {"feats": feats, "z": z, "p": self.predictor(z)}

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        class_loss = out["loss"]
        Z = out["z"]
        P = out["p"]
        Z_momentum = out["momentum_z"]
        neg_cos_sim = 0
        for v1 in range(self.num_large_crops):
            for v2 in [v for v in range(self.num_crops) if v != v1]:
                neg_cos_sim += byol_loss_func(P[v2], Z_momentum[v1])
        self.z_std = F.normalize(torch.stack(Z).detach(), dim=-1).std(dim=1).mean().item()
        return neg_cos_sim + class_loss


build = BYOL


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
