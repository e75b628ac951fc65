"""The equations of the paper are cited, in one form, where they are implemented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UPDATES = [
    "csrc/optimizer/cpu.cpp",
    "csrc/optimizer/cuda_tell.cu",
    "csrc/optimizer/toy/step.cpp",
    "asng_ext/optimizers/reference.py",
]
FAMILIES = ["csrc/core/categorical.h", "csrc/core/gaussian.h"]
STEP_SIZE = ["csrc/core/step_size.h", *UPDATES]
FILES = {
    9: ["asng_ext/engine/search.py"],
    12: ["asng_ext/engine/search.py", *FAMILIES, *UPDATES],
    13: [*FAMILIES, *UPDATES],
    14: ["csrc/optimizer/compat.cpp", *UPDATES],
    17: ["csrc/core/step_size.h"],
    18: ["csrc/core/step_size.h", "asng_ext/optimizers/asng.py"],
    19: ["asng_ext/optimizers/asng.py", *STEP_SIZE],
    20: ["asng_ext/optimizers/asng.py", *STEP_SIZE],
    21: STEP_SIZE,
}


@pytest.mark.parametrize("equation", FILES)
def test_an_equation_is_cited_where_it_is_implemented(equation: int) -> None:
    for name in FILES[equation]:
        assert f"eq. ({equation})" in (ROOT / name).read_text(encoding="utf-8"), name


def test_citations_have_one_form() -> None:
    for folder in ("asng_ext", "csrc"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu"):
                text = path.read_text(encoding="utf-8")
                for citation in re.findall(r"\b[Ee]qs?\..{5}", text, re.DOTALL):
                    assert re.match(r"eq\. \(\d+", citation), (path, citation)
