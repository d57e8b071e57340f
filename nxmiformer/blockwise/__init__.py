"""A decoder compressed one block at a time: no more of it is in memory than a block and what its work takes."""
