"""The tables of the paper as rows that run at any scale: source, adapted, tuned, reported."""
