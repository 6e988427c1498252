"""The CPU's matrix products, through MKL and through oneDNN, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imix_aug._cross_entropy import products

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason="no oneDNN"))])
def library(request, monkeypatch):
    monkeypatch.setattr(products, "PREFERS_ONEDNN", request.param)
    monkeypatch.setattr(products, "MIN_ELEMENTS", 1)


def rows(count, width, dtype, strided):
    values = torch.randn(count, width).to(dtype)
    return values.t().contiguous().t() if strided else values


def close(actual, expected, dtype):
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ((actual.double() - expected).norm() / expected.norm().clamp_min(1)).item() <= TOLERANCES[dtype]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*(st.integers(1, 20),) * 3),
    st.sampled_from(list(TOLERANCES)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 2.0, -2.5]),
    st.booleans(),
)
@pytest.mark.usefixtures("library")
def test_products_are_those_of_float64(sizes, dtype, left_strided, right_strided, scale, by_columns):
    n, m, d = sizes
    left, right = rows(n, d, dtype, left_strided), rows(m, d, dtype, right_strided)
    close(products.times_transposed(left, right, scale), scale * left.double() @ right.double().T, dtype)

    left, right = rows(d, n, dtype, left_strided), rows(d, m, dtype, right_strided)
    total = torch.randn(m, n, dtype=torch.promote_types(dtype, torch.float32)).t()
    total = total if by_columns else total.contiguous()
    expected = total.double() + left.double().T @ right.double()
    products.add_transposed_times(total, left, right)
    close(total, expected, dtype)


@pytest.mark.usefixtures("library")
def test_autocast_leaves_a_chosen_dtype_alone():
    left, right = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        close(products.times_transposed(left, right), left.double() @ right.double().T, torch.float32)


@pytest.mark.parametrize(
    ("queries", "keys", "width", "dtype", "suits"),
    [
        (2, 1, 6, torch.float32, True),
        (1, 2, 6, torch.float32, True),
        (4, 3, 1, torch.float32, True),
        (2, 1, 5, torch.float32, False),
        (2, 1, 6, torch.float64, False),
    ],
)
def test_the_largest_of_three_matrices_decides(queries, keys, width, dtype, suits, monkeypatch):
    monkeypatch.setattr(products, "PREFERS_ONEDNN", True)
    monkeypatch.setattr(products, "MIN_ELEMENTS", 12)
    assert (
        products._suits_onednn(torch.empty(queries, width, dtype=dtype), torch.empty(keys, width, dtype=dtype)) is suits
    )
