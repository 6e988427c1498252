"""nttcslab/byol-a: log-mel spectrograms from the loader, normalised together; the loss inside `forward`."""

# byol_a/byol_pytorch.py
import copy

import torch
import torch.nn.functional as F
from torch import nn


def loss_fn(x, y):
    return 2 - 2 * F.cosine_similarity(x, y, dim=-1)


class BYOL(nn.Module):
    def __init__(self, net, projection_size=6, moving_average_decay=0.9):
        super().__init__()
        self.online_encoder = nn.Sequential(net, nn.Linear(16, projection_size))
        self.target_encoder = copy.deepcopy(self.online_encoder).requires_grad_(False)
        self.online_predictor = nn.Sequential(nn.Linear(projection_size, 16), nn.ReLU(), nn.Linear(16, projection_size))
        self.decay = moving_average_decay

    @torch.no_grad()
    def update_moving_average(self):
        for own, moving in zip(self.online_encoder.parameters(), self.target_encoder.parameters(), strict=True):
            moving.lerp_(own, 1 - self.decay)

    def forward(self, image_one, image_two):
        online_proj_one = self.online_encoder(image_one)
        online_proj_two = self.online_encoder(image_two)
        online_pred_one = self.online_predictor(online_proj_one)
        online_pred_two = self.online_predictor(online_proj_two)
        with torch.no_grad():
            target_proj_one = self.target_encoder(image_one)
            target_proj_two = self.target_encoder(image_two)
        loss_one = loss_fn(online_pred_one, target_proj_two.detach())
        loss_two = loss_fn(online_pred_two, target_proj_one.detach())
        loss = loss_one + loss_two
        return loss.mean()


# train.py
class BYOLALearner(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.learner = BYOL(model)

    def post_norm(self, lms):
        return (lms - lms.mean(dim=(0, 2, 3), keepdim=True)) / lms.std(dim=(0, 2, 3), keepdim=True)

    def training_step(self, paired_inputs, batch_idx):
        bs = paired_inputs[0].shape[0]
        paired_inputs = self.post_norm(torch.cat(paired_inputs))
        return self.learner(paired_inputs[:bs], paired_inputs[bs:])


def build():
    return BYOLALearner(nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU()))


def train(model, loader, optimizer):
    losses = []
    for step, (one, two) in enumerate(loader):
        loss = model.training_step([one.view(-1, 1, 3, 4), two.view(-1, 1, 3, 4)], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.learner.update_moving_average()
        losses.append(loss.item())
    return losses
