from . import errors as errors
from .adopt import load_state as load_state
from .adopt import to_monai as to_monai
from .classifier import Classifier as Classifier
from .classifier import FeatureExtractor as FeatureExtractor
from .contract import InputSpec as InputSpec
from .contract import Outputs as Outputs
from .contract import Preprocessing as Preprocessing
from .data.image import Image as Image
from .data.read import read as read
from .data.transform import transform as transform
from .factory import create as create
from .inference import predict as predict
from .optimized import optimize as optimize
from .pictures import contact_sheet as contact_sheet
from .pictures import show as show
from .prediction import Prediction as Prediction
from .prediction import Predictions as Predictions
from .registry import ModelSpec as ModelSpec
from .registry import describe as describe
from .registry import list_models as list_models
from .registry import register as register
from .weights.load import LoadReport as LoadReport
from .weights.record import Weights as Weights

__version__: str
