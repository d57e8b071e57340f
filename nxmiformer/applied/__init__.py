"""A plan, applied to a model: its layers fake-quantized, packed or sparse. What a layer computes is in layers."""
