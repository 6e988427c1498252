"""yuezhihan/ts2vec: crops of series (N, T, C), made in the loop; embeddings (N, T, D); NaN where a value is missing."""

# ts2vec.py
import torch
import torch.nn.functional as F
from torch import nn


def take_per_row(x, starts, length):
    return x[torch.arange(len(x))[:, None], starts[:, None] + torch.arange(length)]


def instance_contrast(z1, z2):
    n, time, _ = z1.shape
    rows = torch.cat([z1, z2]).transpose(0, 1)
    logits = rows @ rows.transpose(1, 2) - torch.diag(torch.full((2 * n,), torch.inf))
    return F.cross_entropy(logits.flatten(0, 1), torch.arange(2 * n).roll(n).repeat(time))


def hierarchical_contrastive_loss(z1, z2, alpha=0.5, temporal_unit=0):
    """Contrast series at each step, and steps within each series; then so again at half the resolution."""
    loss, depth = 0, 0
    while z1.size(1) > 1:
        loss = loss + alpha * instance_contrast(z1, z2)
        if depth >= temporal_unit:
            loss = loss + (1 - alpha) * instance_contrast(z1.transpose(0, 1), z2.transpose(0, 1))
        z1, z2 = (F.max_pool1d(z.transpose(1, 2), 2).transpose(1, 2) for z in (z1, z2))
        depth += 1
    return (loss + alpha * instance_contrast(z1, z2)) / (depth + 1)


class TSEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_fc, self.output = nn.Linear(3, 8), nn.Conv1d(8, 5, 3, padding=1)

    def forward(self, x):
        x = torch.where(x.isnan().any(dim=-1, keepdim=True), 0, x)
        return self.output(self.input_fc(x).relu().transpose(1, 2)).transpose(1, 2)


class TS2Vec:
    def __init__(self, net, optimizer, temporal_unit=0):
        self._net, self.optimizer, self.temporal_unit = net, optimizer, temporal_unit

    def fit(self, train_loader):
        optimizer = self.optimizer
        losses = []
        for x in train_loader:
            crop_l, crop_left, crop_right, crop_eleft, crop_eright = 4, 2, 6, 1, 7
            crop_offset = torch.randint(0, 3, (x.size(0),))
            optimizer.zero_grad()
            out1 = self._net(take_per_row(x, crop_offset + crop_eleft, crop_right - crop_eleft))
            out1 = out1[:, -crop_l:]
            out2 = self._net(take_per_row(x, crop_offset + crop_left, crop_eright - crop_left))
            out2 = out2[:, :crop_l]
            loss = hierarchical_contrastive_loss(
                out1,
                out2,
                temporal_unit=self.temporal_unit,
            )
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


build = TSEncoder


def series(views):
    """Ten steps of three channels; one value is missing."""
    x = torch.cat([views[0], views[1], views[0][:, :6]], dim=1).reshape(-1, 10, 3)
    x[0, 3] = torch.nan
    return x


def train(model, loader, optimizer):
    return TS2Vec(model, optimizer).fit(series(views) for views in loader)
