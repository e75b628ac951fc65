"""Values that are wrong for every argument of a kind."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch

NOT_NUMBERS: list[Any] = [
    "1", b"1", [1.0], {}, 1j, True, np.True_, np.complex128(1), np.timedelta64(1, "s"),
    Decimal(1), np.array(1.0), np.array([1.0, 2.0]), torch.tensor(1.0), float, object(),
]  # fmt: skip
NOT_FINITE: list[Any] = [math.nan, math.inf, -math.inf, np.float32("nan"), 10**400]
NOT_INTEGERS: list[Any] = [
    "2", 2.0, 2.5, math.nan, math.inf, True, [2], np.float64(2), np.timedelta64(2, "s"), np.array(2),
    torch.tensor(2), Decimal(2), 2j,
]  # fmt: skip
NOT_TEXTS: list[Any] = [1, b"a", ["a"], Path("a"), np.array(["a"])]
NOT_TRUTH_VALUES: list[Any] = ["yes", "", 1, 0, 2.0, [], np.array([True, False]), "False"]
NOT_MAPPINGS: list[Any] = ["op", [("op", "a")], 3, {"op"}, iter([("op", "a")])]
