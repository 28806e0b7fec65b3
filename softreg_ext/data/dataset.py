"""The data set as the rest of the package sees it."""

from dataclasses import dataclass

from torch import Tensor

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True, eq=False)
class FashionData:
    """Garment images with their labels, and where they came from.

    Attributes:
        name: ``"fashion-mnist"`` or ``"synthetic"``.
        source: Where the images came from, for people to read.
        is_synthetic: Whether the images were drawn by this package.
        train_images: ``(N, 28, 28)`` uint8, light garments on black.
        train_labels: ``(N,)`` int64, indices into ``class_names``.
        test_images: ``(M, 28, 28)`` uint8.
        test_labels: ``(M,)`` int64.
        class_names: The names of the ten classes.
    """

    name: str
    source: str
    is_synthetic: bool
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...] = CLASS_NAMES
