from .encoder import Encoder as Encoder
from .head import Head as Head
