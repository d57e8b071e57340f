"""What runs left in their directories, as values and tables. Nothing here draws or writes."""
