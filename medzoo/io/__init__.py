"""Any file to an image."""
