"""The ways to run a packed model, and how each is timed. The job that does it is in jobs."""
