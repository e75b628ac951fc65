"""The distribution that the optimizers share: its parameters and the margins of its
probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asng_ext._checks import brief, is_number
from asng_ext.space import FloatArray

__all__ = ["Margin", "Theta", "margins"]

Margin = str | float


class Theta(NamedTuple):
    """Parameters of the distribution.

    Attributes:
        categorical: (n_cat, max K) probabilities, padded with zeros.
        numerical: (2, n_num), the expectation parameters (μ, μ² + σ²) of the Gaussians, which are
            those of the logarithm for variables with ``log``.
    """

    categorical: FloatArray
    numerical: FloatArray


def margins(sizes: Sequence[int], margin: Margin = "paper") -> list[float]:
    """Lower bound of the probabilities of each categorical variable.

    Args:
        sizes: Numbers of categories K of the variables; n_c of them are above 1.
        margin: "paper" is 1/(n_c (K - 1)) of Section 2.4, or, for a variable to which that leaves
            no room, the next; "catcma" is (1 - 0.73^(1/n_c))/(K - 1), the margin of CatCMA
            (Hamano et al., 2024), which always leaves room; a number is taken as it is.

    Raises:
        ValueError: For another name, or a number that leaves some variable no room.
    """
    choices = max(sum(size > 1 for size in sizes), 1)
    if isinstance(margin, str):
        if margin not in ("paper", "catcma"):
            raise ValueError(f'margin must be "paper", "catcma" or a number, got {margin!r}')
        result = []
        for size in sizes:
            bound = 1 / (choices * (size - 1)) if size > 1 else 0.0
            if size > 1 and (margin == "catcma" or bound * size >= 1 - 1e-9):
                bound = (1 - 0.73 ** (1 / choices)) / (size - 1)
            result.append(bound)
        return result
    if not is_number(margin):
        raise TypeError(f'margin must be "paper", "catcma" or a number, got {brief(margin)}')
    limit = 1 / max(sizes, default=1)
    if not 0 <= margin < limit:
        raise ValueError(
            f"margin must be at least 0 and below 1/K = {limit:.6g} for the variable with most "
            f"categories, got {brief(margin)}"
        )
    return [float(margin) if size > 1 else 0.0 for size in sizes]
