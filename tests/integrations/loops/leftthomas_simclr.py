"""leftthomas/SimCLR: views from the loader, a network that returns features and embeddings, the loss in the loop."""

# main.py
import torch
from torch import nn

temperature = 0.5


class Model(nn.Module):
    def __init__(self, feature_dim=6):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.g = nn.Linear(16, feature_dim)

    def forward(self, x):
        feature = self.f(x)
        return nn.functional.normalize(feature, dim=-1), nn.functional.normalize(self.g(feature), dim=-1)


def train(net, data_loader, train_optimizer):
    losses = []
    for pos_1, pos_2 in data_loader:
        feature_1, out_1 = net(pos_1)
        feature_2, out_2 = net(pos_2)
        rows = torch.cat([out_1, out_2])
        batch_size = len(pos_1)
        similarity = torch.exp(rows @ rows.T / temperature)
        similarity = similarity - torch.diag(similarity.diag())
        together = torch.exp((out_1 * out_2).sum(dim=1) / temperature)
        of_all = similarity.sum(dim=1).view(2, batch_size)
        loss = (of_all.log() - together.log()).mean()
        train_optimizer.zero_grad()
        loss.backward()
        train_optimizer.step()
        losses.append(loss.item())
    return losses


build = Model
