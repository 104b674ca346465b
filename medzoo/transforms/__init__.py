"""Image to tensor, and back."""
