"""torch-geometric with i-Mix: graphs differ in size, so their pooled vectors are mixed (manifold i-Mix)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GINConv, global_add_pool
from torch_geometric.utils import dropout_edge

from imix_aug import IMix, imix_nce_loss


class GraphEncoder(nn.Module):
    """Two rounds of messages, then one vector a graph."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.first = GINConv(nn.Sequential(nn.Linear(1, dim), nn.ReLU(), nn.Linear(dim, dim)))
        self.second = GINConv(nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)))

    def forward(self, graphs: Batch) -> Tensor:
        x = self.first(graphs.x, graphs.edge_index).relu()
        return global_add_pool(self.second(x, graphs.edge_index), graphs.batch)


def random_graph() -> Data:
    """A random graph of 6 to 20 nodes, each with its degree as its feature."""
    n = int(torch.randint(6, 21, ()))
    adjacency = torch.triu(torch.rand(n, n) < torch.rand(()) * 0.6 + 0.1, diagonal=1)
    adjacency = adjacency | adjacency.T
    return Data(x=adjacency.sum(1, keepdim=True).float(), edge_index=adjacency.nonzero().T)


def two_views(steps: int, batch_size: int = 64) -> Iterator[tuple[Batch, Batch]]:
    """Batches of graphs; a view leaves out a tenth of the edges."""
    graphs = [random_graph() for _ in range(256)]
    for _ in range(steps):
        chosen = [graphs[int(i)] for i in torch.randperm(len(graphs))[:batch_size]]
        views = []
        for _ in range(2):
            batch = Batch.from_data_list(chosen)
            batch.edge_index, _ = dropout_edge(batch.edge_index, p=0.1, force_undirected=True)
            views.append(batch)
        yield tuple(views)


def main(steps: int = 100) -> list[float]:
    """Train; return the losses of all steps."""
    encode, project = GraphEncoder(), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    optimizer = torch.optim.Adam([*encode.parameters(), *project.parameters()], lr=1e-3)
    imix = IMix(alpha=1.0)  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        h, labels = imix(encode(view_1))  # i-Mix: graph vectors, (N, D)
        loss = imix_nce_loss(project(h), project(encode(view_2)), labels, temperature=0.2)  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
