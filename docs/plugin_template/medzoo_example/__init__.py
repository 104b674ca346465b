"""A model for medzoo."""
