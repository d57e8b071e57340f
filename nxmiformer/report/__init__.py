"""Pages and console tables of runs and figures. Reading and drawing are elsewhere."""
