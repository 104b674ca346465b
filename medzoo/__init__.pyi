from . import errors as errors
from .classifier import Classifier as Classifier
from .classifier import FeatureExtractor as FeatureExtractor
from .contract import InputSpec as InputSpec
from .contract import Outputs as Outputs
from .contract import Preprocessing as Preprocessing
from .conversion import load_state as load_state
from .conversion import to_monai as to_monai
from .factory import create as create
from .inference.optimize import optimize as optimize
from .inference.result import Prediction as Prediction
from .inference.result import Predictions as Predictions
from .inference.run import predict as predict
from .io.image import Image as Image
from .io.read import read as read
from .registry import ModelSpec as ModelSpec
from .registry import describe as describe
from .registry import list_models as list_models
from .registry import register as register
from .transforms.transform import transform as transform
from .visual.show import contact_sheet as contact_sheet
from .visual.show import show as show
from .weights.load import LoadReport as LoadReport
from .weights.record import Weights as Weights

__version__: str
