"""clabrugere/pytorch-scarf: the second view, with columns swapped for random values, is made inside the model."""

# scarf/model.py
import torch
import torch.nn.functional as F
from torch import nn


class SCARF(nn.Module):
    def __init__(self, features_low, features_high, corruption_rate=0.6):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16))
        self.pretraining_head = nn.Sequential(nn.ReLU(), nn.Linear(16, 6))
        self.low, self.high = features_low, features_high
        self.corruption_rate = corruption_rate

    def forward(self, x):
        corruption_mask = torch.rand_like(x) < self.corruption_rate
        x_random = self.low + (self.high - self.low) * torch.rand_like(x)
        x_corrupted = torch.where(corruption_mask, x_random, x)
        embeddings = self.pretraining_head(self.encoder(x))
        embeddings_corrupted = self.pretraining_head(self.encoder(x_corrupted))
        return embeddings, embeddings_corrupted


# example.ipynb
class NTXent(nn.Module):
    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, z_i, z_j):
        rows = F.normalize(torch.cat([z_i, z_j]), dim=1)
        logits = (rows @ rows.T / self.temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(rows)).roll(len(z_i)))


def train(model, train_loader, optimizer):
    ntxent_loss = NTXent()
    losses = []
    for x, _ in train_loader:
        anchor, positive = model(x)
        loss = ntxent_loss(anchor, positive)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def build():
    return SCARF(-2.0, 2.0)
