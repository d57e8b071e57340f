"""Which layer becomes a point of which set, so that all of them together fit a budget. Plans are in plan."""
