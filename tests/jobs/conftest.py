"""Jobs without pictures: to draw a report takes longer than all else that a tiny run does."""

import pytest

from nxmiformer.report import document


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Reports have their pages and no figure, but for runs of a fixture of a module."""
    monkeypatch.setattr(document, "figures_of", lambda run: {})
    monkeypatch.setattr(document, "figures_of_search", lambda found, plan: {})
