"""From a file to an image, from an image to a tensor, and back."""
