"""The choices of architectures by one operator, for CUDA devices alone."""

from __future__ import annotations

import pytest
import torch
from devices import CUDA_DEVICES

from asng_ext.ops.choices import choices

pytestmark = [pytest.mark.operators, pytest.mark.grid]


@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestChoices:
    @pytest.mark.parametrize(("archs", "nodes"), [(1, 1), (2, 5), (3, 2), (64, 5)])
    def test_every_value_has_its_place(self, archs: int, nodes: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, 4, (archs, 8 * nodes), generator=generator).to(device)
        numbers = torch.tensor([5, 0, 7, 2]).to(device)
        inputs, operations = choices(values, numbers)
        kinds = values.view(archs, 2, nodes, 2, 2).movedim(1, 0)
        assert inputs.dtype == operations.dtype == torch.int32
        assert torch.equal(inputs.long(), kinds[:, :, :, 0])
        assert torch.equal(operations.long(), numbers[kinds[:, :, :, 1]])

    def test_values_that_are_none(self, device: str) -> None:
        values = torch.tensor([[-1, 2**40, -5, 2, 1, 0, 2**40, 1]]).to(device)
        inputs, operations = choices(values, torch.tensor([3, 4]).to(device))
        assert inputs.flatten().tolist() == [-1, -1, 1, 0]
        assert operations.flatten().tolist() == [-1, -1, -1, 4]

    def test_opcheck(self, device: str) -> None:
        values = torch.zeros(3, 16, dtype=torch.int64, device=device)
        torch.library.opcheck(torch.ops.asng._choices, (values, values[0]))

    def test_wrong_arguments(self, device: str) -> None:
        values = torch.zeros(3, 16, dtype=torch.int64, device=device)
        with pytest.raises(RuntimeError, match="a multiple of 8"):
            choices(values[:, 1:].contiguous(), values[0])
        with pytest.raises(RuntimeError, match="architectures must have dtype Long"):
            choices(values.int(), values[0])
