"""DOLG with an EfficientNet or any other convolutional backbone: local and global features, fused orthogonally."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from landmark_retrieval.models.backbone import create_feature_backbone
from landmark_retrieval.models.blocks import (
    Fusion,
    GeM,
    MultiAtrous,
    OrthogonalFusion,
    SpatialAttention,
    check_images,
    neck,
)
from landmark_retrieval.models.checkpointing import checkpoint_blocks
from landmark_retrieval.models.imagenet import pretrained_head_conv

CHANNELS = 1024  # of the local and of the global descriptor, in both papers


class DOLGNet(nn.Module):
    """Deep orthogonal fusion of local and global features (DOLG), as used by Henkel 2021.

    Images float (B, 3, H, W), normalised with ImageNet's mean and standard deviation -> descriptors (B, embedding_dim),
    not L2-normalised.

    Sources: Yang et al. 2021 (arXiv 2108.02927), section 3; Henkel 2021 (arXiv 2110.03786), section 2.1.

    Args:
        backbone: a timm architecture that offers `features_only`; its last two feature maps are used.
        embedding_dim: length of the descriptor.
        dilations: of the three 3x3 convolutions of the local branch; Henkel used (6, 12, 18) for B5 and (3, 6, 9) for
            B6, B7.
        stem_stride: 2, or 1 for feature maps of twice the side.
        pretrained: start from ImageNet weights. Where the backbone is an EfficientNet, the 1x1 convolution of the
            global branch starts from the one that ImageNet trained at the same place; both papers draw it at random.
        fusion: "orthogonal", or "released2021" for weights trained with the released code, which divides by |g| once.

    Raises:
        ValueError: an argument is not one of the above, or forward gets something else than images.
        OSError: the ImageNet weights could not be had.
    """

    # modules that ImageNet weights exist for
    backbone_modules = ("backbone",)

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b5.ns_jft_in1k",
        embedding_dim: int = 512,
        dilations: Sequence[int] = (6, 12, 18),
        stem_stride: int = 2,
        pretrained: bool = False,
        fusion: Fusion = "orthogonal",
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.backbone = create_feature_backbone(backbone, pretrained, stem_stride)
        local_channels, global_channels = self.backbone.feature_info.channels()
        self.local_context = MultiAtrous(local_channels, CHANNELS, dilations)
        self.attention = SpatialAttention(CHANNELS)
        self.global_project = nn.Sequential(
            nn.Conv2d(global_channels, CHANNELS, 1), nn.BatchNorm2d(CHANNELS, eps=1e-3), nn.SiLU()
        )
        self.global_pool = GeM()
        self.fusion = OrthogonalFusion(fusion)
        self.neck = neck(2 * CHANNELS, embedding_dim)
        if pretrained:
            self._start_global_branch_from_imagenet(backbone)
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _start_global_branch_from_imagenet(self, backbone: str) -> None:
        head = pretrained_head_conv(backbone)
        if head is None or head[0].out_channels < CHANNELS:
            return
        head_conv, head_norm = head
        conv: nn.Module = self.global_project[0]
        norm: nn.Module = self.global_project[1]
        conv.get_parameter("weight").copy_(head_conv.weight[:CHANNELS])
        conv.get_parameter("bias").zero_()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(head_norm, name)[:CHANNELS])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the backbone's blocks again in backward instead of keeping them: less memory, more time, same result.

        Raises:
            ValueError: the backbone has no blocks that this is known for, see `checkpointing`.
        """
        checkpoint_blocks(self.backbone, enable)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        check_images(images, self.training)
        local_map, global_map = self.backbone(images.contiguous(memory_format=torch.channels_last))
        features, weights = self.attention(self.local_context(local_map))
        local = (features * weights).mean((2, 3))
        global_ = self.global_pool(self.global_project(global_map))
        return self.neck(self.fusion(local, global_))
