"""The results of runs, as values and tables. Nothing here draws or writes."""
