"""Training: recipes, the task and the data module for Lightning, exact resume, and :func:`medzoo.train`."""

from medzoo.training.extra import require_train_extra

# Here, so that every way to a module of training ends in the advice to install them, and not in an ImportError.
require_train_extra()
