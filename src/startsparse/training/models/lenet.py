"""LeNet-5."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from startsparse.training.models.shapes import image_shape


def lenet5(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """LeNet-5: two 5x5 convolutions of 6 and 16 channels, each pooled, and three linear layers.

    Args:
        input_shape: (C, H, W) of an image of 12x12 or more; the first convolution keeps its size.
        classes: number of outputs.

    References:
        LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, section II.B.

    Fidelity:
        ReLU, max pooling and a full second convolution, as it is used today; the paper has tanh, trained sub-sampling
        and a partly connected C3.

    Example:
        >>> sum(p.numel() for p in lenet5().parameters())  # 156 + 2,416 + 48,120 + 10,164 + 850
        61706
    """
    channels, height, width = image_shape("lenet5", input_shape, least=12)
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 6, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(features, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, classes),
    )
    return nn.Sequential(layers)
