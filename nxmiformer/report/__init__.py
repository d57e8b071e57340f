"""Pages and console tables made of runs and figures. Reading and drawing are elsewhere."""
