"""Shapes of images; needs no torch."""

ImageShape = tuple[int, int, int]  # channels, height, width
CIFAR_IMAGE: ImageShape = (3, 32, 32)
IMAGENET_IMAGE: ImageShape = (3, 224, 224)
