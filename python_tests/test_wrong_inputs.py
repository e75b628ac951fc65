"""Whatever is wrong gets an error that says so, and nothing has changed after it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from wrong_inputs import ROWS, Given, Wrong, shown, snapshot


def complaint(row: Wrong, folder: Path) -> str | None:
    """What is wrong with how a row is refused; None for nothing."""
    subject: Any = row.subject(folder) if row.subject else None
    value, texts = row.value, None
    if isinstance(value, Given):
        value, texts = value.value, [value.text]
    before = snapshot(subject), snapshot(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = row.call(subject, value)
    except row.raises as error:
        words, kind = str(error), type(error).__name__
        if isinstance(error, (UnicodeError, FloatingPointError)):
            return f"{kind}: {words}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    else:
        return f"accepted, and gave {result!r:.80}"
    if (snapshot(subject), snapshot(folder)) != before:
        return f"changed the subject: {words}"
    if row.argument not in words:
        return f"does not name the argument: {kind}: {words}"
    said = words[words.rfind("got ") :] if "got " in words and row.argument else words
    if not any(text in said for text in texts or shown(value)):
        return f"does not show the value: {kind}: {words}"
    if len(words) > 1000:
        return f"is {len(words)} characters long: {words:.100}"
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_wrong_input_is_refused_by_an_error_that_names_it(row: Wrong, tmp_path: Path) -> None:
    assert complaint(row, tmp_path) is None
