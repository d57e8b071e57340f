"""The set of each layer, and how such a plan is made. Searching for one is in search."""
