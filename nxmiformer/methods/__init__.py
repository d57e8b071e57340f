"""The compression methods, one a file. Their mathematics is in optim."""
