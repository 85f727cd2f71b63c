"""DOLG as its authors published it: ResNet-50 or ResNet-101, one linear layer at the end."""

import torch
from torch import Tensor, nn

from landmark_retrieval.models.backbone import create_feature_backbone
from landmark_retrieval.models.blocks import AtrousPyramid, GeM, OrthogonalFusion, SpatialAttention, check_images
from landmark_retrieval.models.checkpointing import checkpoint_blocks
from landmark_retrieval.models.dolg import CHANNELS


class DOLGResNet(nn.Module):
    """Deep orthogonal fusion of local and global features (DOLG), the original network.

    Images float (B, 3, H, W), normalised with ImageNet's mean and standard deviation -> descriptors (B, embedding_dim),
    not L2-normalised. Source: Yang et al. 2021 (arXiv 2108.02927), section 3, and its released code.

    Where it differs from `DOLGNet`: the global descriptor is pooled before it is projected, the descriptor is one
    linear layer of [global, orthogonal] without BatchNorm or PReLU, and the local branch is the plain feature map
    unless `multi_atrous` is set.

    Args:
        depth: 50 or 101.
        multi_atrous: put image average, 1x1 and dilated 3x3 convolutions before the attention. The paper has them, the
            released code leaves them out by default.
        embedding_dim: length of the descriptor.
        pretrained: start from ImageNet weights.

    Raises:
        ValueError: another depth, or forward gets something else than images.
        OSError: the ImageNet weights could not be had.
    """

    # modules that ImageNet weights exist for
    backbone_modules = ("backbone",)

    def __init__(
        self, depth: int = 50, multi_atrous: bool = False, embedding_dim: int = 512, pretrained: bool = False
    ) -> None:
        super().__init__()
        if depth not in (50, 101):
            raise ValueError(f"depth is 50 or 101, not {depth}.")
        self.embedding_dim = embedding_dim
        self.backbone = create_feature_backbone(f"resnet{depth}", pretrained)
        local_channels, global_channels = self.backbone.feature_info.channels()
        self.local_context = AtrousPyramid(local_channels, CHANNELS) if multi_atrous else nn.Identity()
        self.attention = SpatialAttention(CHANNELS)
        self.global_pool = GeM()
        self.global_project = nn.Linear(global_channels, CHANNELS)
        self.fusion = OrthogonalFusion()
        self.neck = nn.Linear(2 * CHANNELS, embedding_dim)
        self.to(memory_format=torch.channels_last)

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
        fused = self.fusion(local, self.global_project(self.global_pool(global_map)))
        orthogonal, global_ = fused.chunk(2, 1)
        return self.neck(torch.cat([global_, orthogonal], 1))
