"""Image data: data sets in memory, batched augmentation, resumable batches, masks."""

from ._seeding import private_generator
from .augment import (
    CIFAR10_AUGMENTATION,
    DIGITS_AUGMENTATION,
    NO_AUGMENTATION,
    Augmentation,
    apply_augmentations,
    augment,
    augmentation_for,
    draw_augmentations,
    normalize,
)
from .batches import BatchPlan, BatchStream, Recipe, evaluation_batches
from .cifar10 import load_cifar10
from .digits import load_digits
from .folder import load_folder
from .images import ImageData, ImageSet, search_parts, split_halves
from .masks import MASKS, draw_masks
from .mnist5k import load_mnist5k
from .photos import load_photos, unlabeled
from .sources import load_images, shape_of

__all__ = [
    "CIFAR10_AUGMENTATION",
    "DIGITS_AUGMENTATION",
    "MASKS",
    "NO_AUGMENTATION",
    "Augmentation",
    "BatchPlan",
    "BatchStream",
    "ImageData",
    "ImageSet",
    "Recipe",
    "apply_augmentations",
    "augment",
    "augmentation_for",
    "draw_augmentations",
    "draw_masks",
    "evaluation_batches",
    "load_cifar10",
    "load_digits",
    "load_folder",
    "load_images",
    "load_mnist5k",
    "load_photos",
    "normalize",
    "private_generator",
    "search_parts",
    "shape_of",
    "split_halves",
    "unlabeled",
]
