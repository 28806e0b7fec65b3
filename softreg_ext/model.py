"""Softmax regression, the model of the textbook's section 3.7."""

from torch import nn


class SoftmaxRegression(nn.Sequential):
    """``Flatten`` followed by ``Linear``: images to logits.

    Maps ``(N, ...)`` floats with ``in_features`` numbers per sample to ``(N, num_classes)``
    logits. The softmax itself belongs to the loss.

    Args:
        in_features: Numbers per sample, 784 for a 28x28 image.
        num_classes: Number of classes.

    Raises:
        ValueError: One of the sizes is smaller than 1.
    """

    def __init__(self, in_features: int = 784, num_classes: int = 10) -> None:
        for name, size in (("in_features", in_features), ("num_classes", num_classes)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        linear = nn.Linear(in_features, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.Flatten(), linear)
