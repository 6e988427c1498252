"""lucidrains/byol-pytorch: views made inside the model, online and target network fed from the same tensor."""

# byol_pytorch.py
import copy

import torch
import torch.nn.functional as F
from torch import nn


def loss_fn(x, y):
    return 2 - 2 * (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(dim=-1)


class Encoder(nn.Module):
    def __init__(self, net, projection_size):
        super().__init__()
        self.net, self.projector = net, nn.Linear(16, projection_size)

    def forward(self, x):
        representation = self.net(x)
        return self.projector(representation), representation


class BYOL(nn.Module):
    def __init__(self, net, augment_fn, projection_size=6, moving_average_decay=0.9):
        super().__init__()
        self.augment1 = self.augment2 = augment_fn
        self.online_encoder = Encoder(net, projection_size)
        self.target_encoder = copy.deepcopy(self.online_encoder).requires_grad_(False)
        self.online_predictor = nn.Sequential(
            nn.Linear(projection_size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, projection_size)
        )
        self.decay = moving_average_decay

    @torch.no_grad()
    def update_moving_average(self):
        for own, moving in zip(self.online_encoder.parameters(), self.target_encoder.parameters(), strict=True):
            moving.lerp_(own, 1 - self.decay)

    def forward(self, x):
        image_one, image_two = self.augment1(x), self.augment2(x)
        images = torch.cat((image_one, image_two), dim=0)
        online_projections, _ = self.online_encoder(images)
        online_predictions = self.online_predictor(online_projections)
        online_pred_one, online_pred_two = online_predictions.chunk(2, dim=0)
        with torch.no_grad():
            target_projections, _ = self.target_encoder(images)
            target_proj_one, target_proj_two = target_projections.chunk(2, dim=0)
        loss_one = loss_fn(online_pred_one, target_proj_two.detach())
        loss_two = loss_fn(online_pred_two, target_proj_one.detach())
        loss = loss_one + loss_two
        return loss.mean()


def augment(x):
    return x + 0.3 * torch.randn_like(x)


def build():
    return BYOL(nn.Sequential(nn.Linear(12, 16), nn.ReLU()), augment)


def train(learner, loader, optimizer):
    losses = []
    for images, _ in loader:
        loss = learner(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        losses.append(loss.item())
    return losses
