"""Which parameters of a model stand still during a stage."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmark_retrieval.errors import LandmarkRetrievalError


def matching_modules(model: nn.Module, patterns: Sequence[str], key: str) -> list[nn.Module]:
    """The modules whose names match one of the patterns ("backbone.blocks.[0-3]"); `key` is where they were given.

    Raises:
        LandmarkRetrievalError: a pattern matches nothing.
    """
    found: list[nn.Module] = []
    names = dict(model.named_modules())
    for pattern in patterns:
        matching = [module for name, module in names.items() if name and fnmatchcase(name, pattern)]
        if not matching:
            raise LandmarkRetrievalError(
                f"{key}: no module of the model matches {pattern!r}; it has {', '.join(_top(names))}."
            )
        found += matching
    return found


def freeze(modules: Iterable[nn.Module]) -> None:
    """Stop the gradients of these modules and keep their BatchNorm statistics, in place.

    `train()` on the whole model sets BatchNorm back to training: call this again after it.
    """
    modules = list(modules)
    for module in modules:
        module.requires_grad_(False)
    freeze_batchnorm(modules)


def freeze_batchnorm(modules: Iterable[nn.Module]) -> None:
    """Keep the BatchNorm statistics of these modules, in place, while their weights may go on learning.

    Statistics of small, shifted and cut training images are not those of the whole photos that are described later.
    `train()` on the whole model undoes this: call it again after it.
    """
    for module in modules:
        for inner in module.modules():
            if isinstance(inner, _BatchNorm):
                inner.eval()


def _top(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.count(".") < 2 and name]
