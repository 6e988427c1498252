"""mlfoundations/open_clip: images and texts, a learned scale that arrives exponentiated, a symmetric loss."""

# open_clip_train/train.py
import torch
import torch.nn.functional as F
from torch import nn


class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6)), nn.Embedding(50, 6)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, images, texts):
        return {
            "image_features": F.normalize(self.visual(images), dim=-1),
            "text_features": F.normalize(self.text(texts).mean(dim=1), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


class ClipLoss(nn.Module):
    def forward(self, image_features, text_features, logit_scale, output_dict=False):
        logits = logit_scale * image_features @ text_features.T
        own = torch.arange(len(logits))
        return {"contrastive_loss": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}


def train_one_epoch(model, loss, dataloader, optimizer):
    losses_m = []
    for images, texts in dataloader:
        optimizer.zero_grad()
        model_out = model(images, texts)
        losses = loss(**model_out, output_dict=True)
        total_loss = sum(losses.values())
        total_loss.backward()
        optimizer.step()
        losses_m.append(total_loss.item())
    return losses_m


def words(view):
    return (view[:, :4].abs() * 20).long().clamp(max=49)


build = CLIP


def train(model, loader, optimizer):
    return train_one_epoch(model, ClipLoss(), ((image, words(text)) for image, text in loader), optimizer)
