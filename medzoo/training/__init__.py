"""Training: recipes, the task and the data module for Lightning, exact resume, and :func:`medzoo.train`."""
