"""The estimator keeps scikit-learn's contract, learns, and goes on where it stopped."""

import pickle

import numpy as np
import pytest
import torch
from estimator import IMixEncoder
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")


def test_scikit_learns_own_checks():
    """None is expected to fail; that of array_api_input is skipped unless SCIPY_ARRAY_API is set."""
    check_estimator(IMixEncoder(features=8, epochs=2))


@pytest.mark.parametrize("shape", [(40, 6), (40, 3, 20)], ids=["table", "series"])
def test_the_seed_decides_and_the_global_state_stays(shape):
    x = np.random.default_rng(0).normal(size=shape)
    before = torch.get_rng_state()
    once, again, other = (IMixEncoder(8, epochs=2, random_state=seed).fit_transform(x) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert once.shape == (40, 8)
    assert once.dtype == np.float32
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.01


def test_partial_fit_goes_on_where_fit_stopped():
    """Two epochs, then one more, are three, where no batch is cut off and the scale is that of the same rows."""
    x = np.random.default_rng(0).normal(size=(64, 6))
    whole = IMixEncoder(8, epochs=3, random_state=0).fit(x)
    parts = IMixEncoder(8, epochs=2, random_state=0).fit(x).set_params(epochs=1).partial_fit(x)
    np.testing.assert_allclose(parts.transform(x), whole.transform(x), atol=1e-5)
    first = IMixEncoder(8, epochs=3, random_state=0).partial_fit(x)
    np.testing.assert_array_equal(first.transform(x), whole.transform(x))


def test_series_of_another_length_and_layout():
    x = np.random.default_rng(0).normal(size=(30, 2, 20))
    encoder = IMixEncoder(8, epochs=1, random_state=0).fit(x)
    assert encoder.transform(x[:, :, :15]).shape == (30, 8)
    scaled = 5 + 3 * x  # each channel is standardised
    np.testing.assert_allclose(
        IMixEncoder(8, epochs=1, random_state=0).fit_transform(scaled), encoder.transform(x), atol=1e-4
    )


def test_frames_pickles_and_clones():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=(30, 4)), columns=list("abcd"))
    encoder = IMixEncoder(3, epochs=1, random_state=0).set_output(transform="pandas").fit(frame)
    features = encoder.transform(frame)
    assert list(features.columns) == ["imixencoder0", "imixencoder1", "imixencoder2"]
    pandas.testing.assert_frame_equal(pickle.loads(pickle.dumps(encoder)).transform(frame), features)
    assert clone(encoder).get_params() == encoder.get_params()


def test_features_of_digits_tell_them_apart():
    x, y = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=0)
    probe = make_pipeline(IMixEncoder(epochs=10, random_state=0), KNeighborsClassifier(metric="cosine"))
    assert probe.fit(train_x, train_y).score(test_x, test_y) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"epochs": 0}, "epochs == 0"), ({"batch_size": 1}, "batch_size == 1"), ({"features": 0}, "features == 0"),
     ({"alpha": -1.0}, "alpha"), ({"temperature": 0.0}, "temperature"), ({"dropout": 2.0}, "dropout")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        IMixEncoder(**settings).fit(np.random.default_rng(0).normal(size=(30, 4)))


def test_a_table_after_series_is_refused():
    series = np.random.default_rng(0).normal(size=(30, 4, 10))
    encoder = IMixEncoder(8, epochs=1).fit(series)
    with pytest.raises(ValueError, match="3 dimensions"):
        encoder.transform(series[..., 0])
    with pytest.raises(ValueError, match="table"):
        IMixEncoder(8, epochs=1).fit(series[..., None])
