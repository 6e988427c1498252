"""PyGCL's GraphCL: views of graphs are made inside the encoder, and pooled; nothing before that can be averaged."""

# examples/GraphCL.py
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class GConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.node = nn.Linear(3, 16)
        self.project = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x, batch):
        z = self.node(x).relu()
        return z, z.new_zeros(int(batch[-1]) + 1, 16).index_add(0, batch, z)


class Encoder(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, data):
        x1, x2 = (data.x + 0.2 * torch.randn_like(data.x) for _ in range(2))
        (z, g), (z1, g1), (z2, g2) = (self.encoder(x, data.batch) for x in (data.x, x1, x2))
        return z, g, z1, z2, g1, g2


class DualBranchContrast(nn.Module):
    def __init__(self, tau):
        super().__init__()
        self.tau = tau

    def forward(self, g1, g2, batch):
        logits = F.normalize(g1, dim=1) @ F.normalize(g2, dim=1).T / self.tau
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) * 0.5


def train_epoch(encoder_model, contrast_model, dataloader, optimizer):
    losses = []
    for data in dataloader:
        optimizer.zero_grad()
        _, _, _, _, g1, g2 = encoder_model(data)
        g1, g2 = [encoder_model.encoder.project(g) for g in [g1, g2]]
        loss = contrast_model(g1=g1, g2=g2, batch=data.batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def graphs(view):
    """Four nodes of three features each per graph."""
    return SimpleNamespace(x=view.reshape(-1, 3), batch=torch.arange(len(view)).repeat_interleave(4))


def build():
    return Encoder(GConv())


def train(model, loader, optimizer):
    return train_epoch(model, DualBranchContrast(tau=0.2), (graphs(view) for view, _ in loader), optimizer)
