"""The compression methods, one a file. What they ask of mathematics is in optim."""
