"""The initialization of Keras's dense layers, which methods that come from TensorFlow start from."""

from torch import nn


def glorot(module: nn.Module, whole: bool = False) -> None:
    """Set every linear layer inside ``module``: Glorot uniform weights, zero biases, in place.

    Queries, keys and values that share one layer (named ``qkv``) are drawn as the three matrices that they are, unless
    the layer is to be drawn ``whole`` (MAE).
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            for part in layer.weight.chunk(3) if name.endswith("qkv") and not whole else (layer.weight,):
                nn.init.xavier_uniform_(part)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
