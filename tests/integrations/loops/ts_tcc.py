"""emadeldeen24/TS-TCC: a temporal loss on the features, and NT-Xent on the contexts that it returns."""

# trainer/trainer.py
import torch
import torch.nn.functional as F
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 5, 3, padding=1)
        self.logits = nn.Linear(60, 3)

    def forward(self, x):
        features = self.conv(x).relu()
        return self.logits(features.flatten(1)), features


class TC(nn.Module):
    """Predicts the last step of one view from the mean of the other's first half, which is the context."""

    def __init__(self):
        super().__init__()
        self.predict, self.projection_head = nn.Linear(5, 5), nn.Linear(5, 6)

    def forward(self, features_aug1, features_aug2):
        context = features_aug1[:, :, :6].mean(dim=2)
        logits = features_aug2[:, :, -1] @ self.predict(context).T
        return F.cross_entropy(logits, torch.arange(len(context))), self.projection_head(context)


class NTXentLoss(nn.Module):
    def __init__(self, device, batch_size, temperature, use_cosine_similarity):
        super().__init__()
        self.temperature = temperature

    def forward(self, zis, zjs):
        rows = F.normalize(torch.cat([zjs, zis]), dim=1)
        logits = (rows @ rows.T / self.temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(rows)).roll(len(zis)))


class config:
    batch_size = 8

    class Context_Cont:
        temperature, use_cosine_similarity = 0.2, True


def model_train(model, temporal_contr_model, optimizer, train_loader, device="cpu"):
    losses = []
    for aug1, aug2 in train_loader:
        predictions1, features1 = model(aug1)
        predictions2, features2 = model(aug2)
        features1 = F.normalize(features1, dim=1)
        features2 = F.normalize(features2, dim=1)
        temp_cont_loss1, temp_cont_lstm_feat1 = temporal_contr_model(features1, features2)
        temp_cont_loss2, temp_cont_lstm_feat2 = temporal_contr_model(features2, features1)
        zis = temp_cont_lstm_feat1
        zjs = temp_cont_lstm_feat2
        lambda1 = 1
        lambda2 = 0.7
        nt_xent_criterion = NTXentLoss(device, config.batch_size, config.Context_Cont.temperature,
                                       config.Context_Cont.use_cosine_similarity)  # fmt: skip
        loss = (temp_cont_loss1 + temp_cont_loss2) * lambda1 + nt_xent_criterion(zis, zjs) * lambda2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def build():
    return nn.ModuleList([Base(), TC()])


def train(models, loader, optimizer):
    return model_train(*models, optimizer, ((one[:, None], two[:, None]) for one, two in loader))
