"""What runs left, and the figures and pages made of it."""

from nxmiformer.report.runs import load_metrics, load_runs

__all__ = ["load_metrics", "load_runs"]
