"""What a command prints while it works and at its end. What it does is in jobs."""
