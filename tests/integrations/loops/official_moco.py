"""facebookresearch/moco: a builder that returns logits (N, 1 + K), positive first; a script with an accuracy line."""

# moco/builder.py
import torch
import torch.nn as nn


def concat_all_gather(tensor):
    return tensor  # one process


class MoCo(nn.Module):
    def __init__(self, base_encoder, dim=128, K=65536, m=0.999, T=0.07, mlp=False):
        super().__init__()
        self.K = K
        self.m = m
        self.T = T
        self.encoder_q = base_encoder(num_classes=dim)
        self.encoder_k = base_encoder(num_classes=dim)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update_key_encoder(self):
        for own, moving in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            moving.lerp_(own, 1 - self.m)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys):
        keys = concat_all_gather(keys)
        ptr = int(self.queue_ptr)
        self.queue[:, ptr : ptr + len(keys)] = keys.T
        self.queue_ptr[0] = (ptr + len(keys)) % self.K

    def forward(self, im_q, im_k):
        q = self.encoder_q(im_q)  # queries: NxC
        q = nn.functional.normalize(q, dim=1)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            k = nn.functional.normalize(self.encoder_k(im_k), dim=1)
        l_pos = (q * k).sum(dim=1, keepdim=True)
        l_neg = q @ self.queue.clone().detach()
        logits = torch.cat([l_pos, l_neg], dim=1) / self.T
        labels = torch.zeros(logits.shape[0], dtype=torch.long)
        self._dequeue_and_enqueue(k)
        return logits, labels


# main_moco.py
def accuracy(output, target, topk=(1,)):
    best = output.topk(max(topk), dim=1).indices
    return [100 * (best[:, :k] == target[:, None]).any(dim=1).double().mean() for k in topk]


def train(model, train_loader, optimizer):
    criterion = nn.CrossEntropyLoss()
    losses, top1 = [], []
    for images in train_loader:
        output, target = model(im_q=images[0], im_k=images[1])
        loss = criterion(output, target)
        acc1, acc5 = accuracy(output, target, topk=(1, 5))
        losses.append(loss.item())
        top1.append(acc1.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    train.top1 = top1
    return losses


def build():
    def base_encoder(num_classes):
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, num_classes))

    return MoCo(base_encoder, dim=6, K=32, m=0.9)
