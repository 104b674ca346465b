"""Which region of an image drove an output."""
