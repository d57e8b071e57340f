"""Which layers can be compressed, what they compute, and what reaches them. Which set each ends in is in plan."""
