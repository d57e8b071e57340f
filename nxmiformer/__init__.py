"""Jointly sparsify and quantize Transformers with ADMM."""
