"""medzoo: a model zoo for medical image classification, 2D and 3D.

The names below are imported when they are first used; the stub beside this file lists them. The library logs to the
logger ``medzoo`` and prints nothing.
"""

import logging

import lazy_loader

# Without it, Python would print warnings of the library to stderr in a program that did not configure logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

del logging, lazy_loader
