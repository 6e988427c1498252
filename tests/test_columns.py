"""The columns that a row treats apart, against rows counted and summed one at a time."""

import pytest
import torch

from imix_aug._cross_entropy.columns import LeftOut, Positives, row_numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [1, 3])
def test_a_label_s_mean_is_that_of_its_rows_and_in_their_dtype(dtype, width):
    rows = torch.randn(5, 4).to(dtype)
    columns, shares = torch.randint(5, (5, width)), torch.rand(5, width)
    mean = Positives(columns, shares).mean(rows)
    assert mean.dtype == dtype
    wanted = torch.zeros(5, 4, dtype=torch.float64)
    for i in range(5):
        for column, share in zip(columns[i].tolist(), shares[i].tolist(), strict=True):
            wanted[i] += share * rows[column].double()
    torch.testing.assert_close(mean.double(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps + 1e-6)


def test_rows_are_counted_on_their_device_whatever_the_default_one_is():
    for device in ("cpu", "meta"):
        with torch.device("meta" if device == "cpu" else "cpu"):
            numbers = row_numbers(torch.empty(7, 2, device=device))
            own = Positives.own(7, torch.device(device), torch.float16)
        assert (numbers.device.type, numbers.dtype, len(numbers)) == (device, torch.int64, 7)
        assert [each.device.type for each in own] == [device] * 2
        assert [each.dtype for each in own] == [torch.int64, torch.float16]
        assert [each.shape for each in own] == [(7, 1)] * 2
    assert row_numbers(torch.empty(7)).tolist() == list(range(7))


def test_rows_of_a_batch_size_are_counted_once():
    assert row_numbers(torch.empty(6)) is row_numbers(torch.empty(6, 3))
    assert len(row_numbers(torch.empty(5))) == 5


def test_what_is_shifted_keeps_its_shares_and_ids():
    columns, shares, ids = torch.tensor([[0, 1], [1, 0]]), torch.rand(2, 2), torch.tensor([4, 5])
    for by in (0, 3):
        moved = Positives(columns, shares).shifted(by)
        assert moved.columns.tolist() == [[by, by + 1], [by + 1, by]]
        assert moved.shares is shares
        left_out = LeftOut(columns, ids, ids).shifted(by)
        assert left_out.columns.tolist() == moved.columns.tolist()
        assert left_out.row_ids is left_out.key_ids is ids
    assert LeftOut(None, ids).shifted(3) == LeftOut(None, ids)
