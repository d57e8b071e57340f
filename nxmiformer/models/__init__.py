"""The sources of models and tokenizers. Compression is in layers and plan."""
