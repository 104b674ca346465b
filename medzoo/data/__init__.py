"""Tables of images and labels, splits that cannot leak a patient, cached pixels, and loaders with a place."""
