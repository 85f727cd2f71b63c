"""GeM over the last feature map: the pure EfficientNet of the ensemble, and the untrained baseline."""

import torch
from torch import Tensor, nn

from landmark_retrieval.models.blocks import GeM, check_images, neck
from landmark_retrieval.models.checkpointing import checkpoint_blocks
from landmark_retrieval.models.imagenet import create_timm_model


class GeMNet(nn.Module):
    """A timm network, GeM pooling and a neck.

    Images float (B, 3, H, W), normalised with ImageNet's mean and standard deviation -> descriptors (B, embedding_dim),
    not L2-normalised. Source: Henkel 2021 (arXiv 2110.03786), section 2.2.

    Args:
        backbone: a timm convolutional architecture; its features before pooling are used.
        embedding_dim: length of the descriptor; None leaves the neck out, so that the descriptor is the pooled features
            of the backbone and, with `pretrained=True`, needs no training at all.
        pretrained: start from ImageNet weights.

    Raises:
        ValueError: no such architecture or not a convolutional one, or forward gets something else than images.
        OSError: the ImageNet weights could not be had.
    """

    # modules that ImageNet weights exist for
    backbone_modules = ("backbone",)

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b5.ns_jft_in1k",
        embedding_dim: int | None = 512,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = create_timm_model(backbone, pretrained, num_classes=0, global_pool="")
        with torch.device("meta"), torch.no_grad():
            shape_only = create_timm_model(backbone, False, num_classes=0, global_pool="").eval()
            probe = shape_only(torch.empty(1, *shape_only.pretrained_cfg["input_size"]))
        if probe.ndim != 4 or probe.shape[2] != probe.shape[3]:
            raise ValueError(
                f"{backbone} gives features of shape {tuple(probe.shape)}: choose a convolutional backbone."
            )
        channels = probe.shape[1]
        self.embedding_dim = embedding_dim or channels
        self.global_pool = GeM()
        self.neck = neck(channels, embedding_dim) if embedding_dim else nn.Identity()
        self.to(memory_format=torch.channels_last)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the backbone's blocks again in backward instead of keeping them: less memory, more time, same result.

        Raises:
            ValueError: the backbone has no blocks that this is known for, see `checkpointing`.
        """
        checkpoint_blocks(self.backbone, enable)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        check_images(images, self.training)
        return self.neck(self.global_pool(self.backbone(images.contiguous(memory_format=torch.channels_last))))
