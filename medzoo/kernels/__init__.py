"""Fast paths that give the same numbers as the plain layers, and the table that says where each one runs."""
