"""What the command line runs: compress, search, export, bench, sweep. Each composes what other packages give."""
