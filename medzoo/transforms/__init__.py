"""Preprocessing: an image to the tensor a model takes, and maps back to the grid of the image."""
