"""Where a model and its tokenizer come from. What is made of them is in layers and plan."""
