"""Embeddings of a table or of time series in three lines, in scikit-learn's manner:

    from estimator import IMixEncoder

    encoder = IMixEncoder(random_state=0).fit(X)  # (N, columns) numbers, or series (N, C, T); no classes
    features = encoder.transform(X)  # (N, 256)

It goes into pipelines, takes part in `set_output`, is pickled and cloned; `partial_fit` goes on with more rows.
`python examples/estimator.py` compares it with the columns themselves.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from imix_aug import IMix, imix_nce_loss


class IMixEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn features of rows by contrasting them with each other, mixed by i-Mix.

    Args:
        features: how many features come out.
        alpha: how much is mixed; 0 trains without i-Mix.
        temperature: of the N-pair loss.
        dropout: the share of a row's values that each view leaves out.
        epochs: passes over the rows in ``fit``, and in each ``partial_fit``.
        batch_size: rows per step, at least; fewer where there are not as many.
        learning_rate: of AdamW.
        random_state: an int, a ``RandomState``, or None; the global random states are left as they are.
    """

    def __init__(
        self,
        features: int = 256,
        *,
        alpha: float = 1.0,
        temperature: float = 0.2,
        dropout: float = 0.2,
        epochs: int = 50,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.features = features
        self.alpha = alpha
        self.temperature = temperature
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> IMixEncoder:
        """Train from the start; ``y`` is not looked at."""
        X = self._validate(X, reset=True, ensure_min_samples=2)  # one row has nothing to be told from
        self._start(X)
        return self._train(X)

    def partial_fit(self, X: Any, y: object = None) -> IMixEncoder:
        """Train on, with rows that may be new; ``y`` is not looked at."""
        first = not hasattr(self, "encoder_")
        X = self._validate(X, reset=first, ensure_min_samples=2)
        if first:
            self._start(X)
        return self._train(X)

    @torch.no_grad()
    def transform(self, X: Any) -> np.ndarray:
        """Return the features (N, features) of rows."""
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        return self.encoder_(self._scale(X)).numpy()

    def _start(self, X: np.ndarray) -> None:
        """Build networks and optimizer for arrays like X."""
        check_scalar(self.features, "features", Integral, min_val=1)
        build_encoder = table_encoder if X.ndim == 2 else series_encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(check_random_state(self.random_state).randint(2**31)))
            encoder = build_encoder(X.shape[1], self.features)
            head = nn.Sequential(nn.Linear(self.features, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))
            self._torch_state = torch.get_rng_state()
        self.encoder_, self.head_, self.scaler_ = encoder, head, StandardScaler()
        self._optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=self.learning_rate)
        self._n_features_out, self._ndim = self.features, X.ndim

    def _train(self, X: np.ndarray) -> IMixEncoder:
        """Contrast the rows with each other, ``epochs`` times."""
        check_scalar(self.epochs, "epochs", Integral, min_val=1)
        check_scalar(self.batch_size, "batch_size", Integral, min_val=2)
        self.scaler_.partial_fit(_by_channel(X))
        x = self._scale(X)
        view = nn.Dropout(self.dropout)
        imix = IMix(alpha=self.alpha)
        self.encoder_.train(), self.head_.train()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._torch_state)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).tensor_split(max(len(x) // self.batch_size, 1)):
                    mixed, labels = imix(view(x[rows]))  # i-Mix
                    query, key = self.head_(self.encoder_(mixed)), self.head_(self.encoder_(view(x[rows])))
                    loss = imix_nce_loss(query, key, labels, temperature=self.temperature)  # i-Mix
                    self._optimizer.zero_grad()
                    loss.backward()
                    self._optimizer.step()
            self._torch_state = torch.get_rng_state()
        self.encoder_.eval(), self.head_.eval()
        return self

    def _validate(self, X: Any, **checks: Any) -> np.ndarray:
        X = validate_data(self, X, dtype=(np.float64, np.float32), allow_nd=True, **checks)
        if X.ndim > 3:
            raise ValueError(f"X must be a table (N, columns) or series (N, C, T), got shape {X.shape}")
        if not checks["reset"] and X.ndim != self._ndim:
            raise ValueError(f"X must have {self._ndim} dimensions, as in fit, got shape {X.shape}")
        return X

    def _scale(self, X: np.ndarray) -> Tensor:
        scaled = self.scaler_.transform(_by_channel(X))
        if X.ndim == 3:
            scaled = scaled.reshape(len(X), X.shape[2], X.shape[1]).transpose(0, 2, 1)
        return torch.tensor(scaled, dtype=torch.float32)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def table_encoder(columns: int, features: int, width: int = 256) -> nn.Module:
    """Build an MLP (N, columns) -> (N, features)."""
    layers = [nn.Linear(columns, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, features, bias=False), nn.BatchNorm1d(features), nn.ReLU())


def series_encoder(channels: int, features: int, width: int = 64) -> nn.Module:
    """Build convolutions and a pooling (N, C, T) -> (N, features), for any T."""
    layers = [nn.Conv1d(channels, width, 7, padding=3, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    layers += [nn.Conv1d(width, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    layers += [nn.Conv1d(width, features, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())


def _by_channel(X: np.ndarray) -> np.ndarray:
    """Bring what is scaled alike into one column: (N, columns) as it is, (N, C, T) as (N T, C)."""
    return X if X.ndim == 2 else X.transpose(0, 2, 1).reshape(-1, X.shape[1])


def main() -> dict[str, float]:
    """Print and return the test accuracy of a linear classifier that sees 100 labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline

    x, y = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=0, stratify=y)
    encoder, scores = IMixEncoder(random_state=0).fit(train_x), {}
    for name, features in (("columns", "passthrough"), ("features", FrozenEstimator(encoder))):
        probe = make_pipeline(features, StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        scores[name] = probe.fit(train_x[:100], train_y[:100]).score(test_x, test_y)
        print(f"{name:9} {scores[name]:.1%}")
    return scores


if __name__ == "__main__":
    main()
