"""The compression methods, one a file."""
