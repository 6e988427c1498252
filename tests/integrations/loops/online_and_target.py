"""An online and a target network, both fed from the same views."""

import copy

import torch.nn.functional as F
from torch import nn


def byol_loss(prediction, target):
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=1).mean()


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))

    def training_step(self, views):
        p_1, p_2 = (self.predictor(self.online(x)) for x in views)
        z_1, z_2 = (self.target(x) for x in views)
        return byol_loss(p_1, z_2) + byol_loss(p_2, z_1)


def train(model, loader, optimizer):
    losses = []
    for views in loader:
        loss = model.training_step(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


build = Method
