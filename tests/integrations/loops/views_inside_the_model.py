"""The model augments what it is given, and returns its loss."""

import torch
import torch.nn.functional as F
from torch import nn


def info_nce(query, key, temperature):
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits)))


class Contrastive(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))

    def augment(self, x):
        return F.dropout(x, p=0.3)

    def forward(self, x):
        view_1, view_2 = self.augment(x), self.augment(x)
        return info_nce(self.net(view_1), self.net(view_2), temperature=0.2)


def train(model, loader, optimizer):
    losses = []
    for x, _ in loader:
        loss = model(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


build = Contrastive
