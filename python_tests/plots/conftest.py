"""What the tests of pictures share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn."""
    from matplotlib.text import Text

    drawn: list[str] = []
    draw_text = Text.draw

    def record(text: Text, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text():
            drawn.append(text.get_text())
        draw_text(text, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    return drawn
