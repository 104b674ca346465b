"""The fast paths on a CPU, one file per operation."""
