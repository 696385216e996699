"""How the images were normalised that weights were trained on; it belongs with the weights."""

# Normalisation of torchvision's, timm's and mmseg's weights; also a good one for training from nothing.
IMAGENET_RGB = {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375), 'bgr': False}
# Normalisation of the authors' weights: blue first, means only.
AUTHORS_BGR = {'mean': (102.9801, 115.9465, 122.7717), 'std': (1.0, 1.0, 1.0), 'bgr': True}
