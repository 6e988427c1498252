"""Sums by class against one product with the matrix that says who is of which class."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from imix_aug._keys.class_sums import class_sums, mean, with_ones

CLASSES = st.lists(st.integers(-3, 3), min_size=1, max_size=9)


@given(of_rows=CLASSES, classes=CLASSES)
def test_sums_and_means_of_the_rows_of_each_class(of_rows, classes):
    of_rows, classes = torch.tensor(of_rows), torch.tensor(classes)
    rows = torch.randn(len(of_rows), 3, dtype=torch.float64)
    same = (classes[:, None] == of_rows).double()
    total, count = same @ rows, same.sum(1, keepdim=True)
    sums = class_sums(with_ones(rows), of_rows, classes)
    torch.testing.assert_close(sums, torch.cat([total, count], 1))
    torch.testing.assert_close(mean(sums), total / count, equal_nan=True)
