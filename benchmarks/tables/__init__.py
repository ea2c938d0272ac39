"""Run the rows of the paper's tables at any scale: load a source, adapt it, tune it and report."""
