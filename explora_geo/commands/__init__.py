"""Commands of `explora-geo`, one file each; heavy imports wait until a command runs."""
