"""Which layer becomes a point of which set, and how such a plan comes about. Searching one is in search."""
