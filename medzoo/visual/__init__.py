"""Pictures: images and volumes drawn for a person to check, and phantoms."""
