"""What operators need under `torch.compile` alone: it imports PyTorch's compiler."""

from __future__ import annotations

import torch

from asng_ext.ops._feature_maps import convolves_in_tf32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant_allows_tf32() -> bool:
    """The setting when it is compiled, which cannot be read in compiled code."""
    return convolves_in_tf32()
