"""Figures, one a file: each takes values of runs and gives a figure. Pages are in report."""
