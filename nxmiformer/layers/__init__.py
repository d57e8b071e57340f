"""Which layers can be compressed, what they compute, and their inputs. The set of each is in plan."""
