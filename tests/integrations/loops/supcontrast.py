"""HobbitLong/SupContrast: views stacked as 2N, features as (N, 2, D), one criterion for SimCLR and SupCon."""

# main_supcon.py
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class SupConLoss(nn.Module):
    def __init__(self, temperature=0.07, base_temperature=0.07):
        super().__init__()
        self.temperature, self.base_temperature = temperature, base_temperature

    def forward(self, features, labels=None):
        n, views, _ = features.shape
        labels = torch.arange(n) if labels is None else labels
        rows = torch.cat(features.unbind(dim=1))
        logits = (rows @ rows.T / self.temperature).fill_diagonal_(-torch.inf)
        positive = (labels.repeat(views)[:, None] == labels.repeat(views)).fill_diagonal_(False)
        log_p = logits.log_softmax(dim=1).masked_fill(~positive, 0)
        return -(self.temperature / self.base_temperature) * (log_p.sum(dim=1) / positive.sum(dim=1)).mean()


def train_with(opt, train_loader, model, optimizer):
    criterion = SupConLoss(temperature=opt.temp)
    losses = []
    for images, labels in train_loader:
        images = torch.cat([images[0], images[1]], dim=0)
        bsz = labels.shape[0]
        features = model(images)
        f1, f2 = torch.split(features, [bsz, bsz], dim=0)
        features = torch.cat([f1.unsqueeze(1), f2.unsqueeze(1)], dim=1)
        if opt.method == "SupCon":
            loss = criterion(features, labels)
        elif opt.method == "SimCLR":
            loss = criterion(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU()), nn.Linear(16, 6)

    def forward(self, x):
        return F.normalize(self.head(self.encoder(x)), dim=1)


build, method = Net, "SimCLR"


def train(model, loader, optimizer):
    with_classes = (([one, two], torch.arange(len(one)) % 3) for one, two in loader)
    return train_with(SimpleNamespace(temp=0.07, method=method), with_classes, model, optimizer)
