"""A fused softmax cross-entropy for PyTorch, and the softmax regression it was made for."""

from . import _extension

__version__ = _extension.BUILD.version

from . import data, training
from .adoption import patch, unpatch
from .functional import cross_entropy
from .linear import linear_cross_entropy
from .loss import CrossEntropyLoss, LinearCrossEntropyLoss
from .memory import release_memory
from .model import SoftmaxRegression

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "SoftmaxRegression",
    "__version__",
    "cross_entropy",
    "data",
    "linear_cross_entropy",
    "patch",
    "release_memory",
    "training",
    "unpatch",
]
