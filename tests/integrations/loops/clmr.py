"""Spijkervet/CLMR: both views of a waveform stacked as (N, 2, T); the loss inside `forward`."""

# clmr/modules/contrastive_learning.py
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten())
        self.projector = nn.Linear(40, 6)

    def forward(self, x_i, x_j):
        h_i, h_j = self.encoder(x_i), self.encoder(x_j)
        return h_i, h_j, self.projector(h_i), self.projector(h_j)


class NT_Xent(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, z_i, z_j):
        rows = F.normalize(torch.cat([z_i, z_j]), dim=1)
        logits = (rows @ rows.T / self.temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(rows)).roll(len(z_i)))


class ContrastiveLearning(nn.Module):
    def __init__(self):
        super().__init__()
        self.hparams = SimpleNamespace(temperature=0.5)
        self.model = SimCLR()
        self.criterion = NT_Xent(self.hparams.temperature)

    def forward(self, x_i, x_j):
        _, _, z_i, z_j = self.model(x_i, x_j)
        loss = self.criterion(z_i, z_j)
        return loss

    def training_step(self, batch, batch_idx):
        x_i, x_j = batch[:, 0, :].unsqueeze(dim=1), batch[:, 1, :].unsqueeze(dim=1)
        return self.forward(x_i, x_j)


build = ContrastiveLearning


def train(model, loader, optimizer):
    losses = []
    for step, views in enumerate(loader):
        loss = model.training_step(torch.stack(views, dim=1), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
