"""What a command shows while it works, and says when it has ended. What it does is in jobs."""
