"""What a command shows while it works, and says when it has ended."""
