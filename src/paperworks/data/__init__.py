"""Reading images in: folders, parquet, hub data sets, webdataset shards, torchvision objects and data that is always there."""

from paperworks.data.embedded import lite0_weights
from paperworks.data.loader import Batch, Loader
from paperworks.data.mixing import Mix, soft_labels
from paperworks.data.opening import open_images
from paperworks.data.photos import random_crops
from paperworks.data.source import ImageSource
from paperworks.data.transformed import Transformed

__all__ = [
    "Batch",
    "ImageSource",
    "Loader",
    "Mix",
    "Transformed",
    "lite0_weights",
    "open_images",
    "random_crops",
    "soft_labels",
]
