"""The search for a set of each layer, so that all of them together fit a budget. Plans are in plan."""
