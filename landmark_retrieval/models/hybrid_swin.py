"""The Hybrid-Swin-Transformer: the first blocks of an EfficientNet, then a Swin Transformer over their grid."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from landmark_retrieval.models.backbone import create_feature_backbone
from landmark_retrieval.models.blocks import check_images, neck
from landmark_retrieval.models.checkpointing import checkpoint_blocks
from landmark_retrieval.models.swin import PATCH, SwinStages, create_swin, smallest_grid

Aggregation = Literal["token", "mean"]


class CNNPatchEmbedding(nn.Module):
    """EfficientNet blocks, position embedding, 1x1 projection: images (B, 3, H, W) -> grid (B, g, g, channels).

    Args:
        cnn: a timm architecture that offers `features_only`.
        cnn_blocks: 1, 2 or 3: cut after timm's feature map of that number, of an EfficientNet stride 4, 8 or 16.
        stem_stride: 2, or 1 for half of these strides.
        grid: g.
        channels: of the grid.
        position_embedding: whether to add a learned (1, C, g, g) to the features of the CNN.
        pretrained: start the CNN from ImageNet weights.
    """

    def __init__(
        self,
        cnn: str,
        cnn_blocks: int,
        stem_stride: int,
        grid: int,
        channels: int,
        position_embedding: bool,
        pretrained: bool,
    ) -> None:
        super().__init__()
        self.cnn = create_feature_backbone(cnn, pretrained, stem_stride, (cnn_blocks,))
        (features,) = self.cnn.feature_info.channels()
        self.position = nn.Parameter(torch.zeros(1, features, grid, grid)) if position_embedding else None
        self.project = nn.Conv2d(features, channels, 1)
        if self.position is not None:
            trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        (x,) = self.cnn(images.contiguous(memory_format=torch.channels_last))
        if self.position is not None:
            x = x + self.position
        return self.project(x).permute(0, 2, 3, 1)


class HybridSwinNet(nn.Module):
    """Hybrid-Swin-Transformer: EfficientNet blocks, position embedding, projection, Swin, one vector, neck.

    Images float (B, 3, image_size, image_size), normalised with ImageNet's mean and standard deviation -> descriptors
    (B, embedding_dim), not L2-normalised. Source: Henkel 2021 (arXiv 2110.03786), section 2.2.

    Args:
        cnn: a timm architecture that offers `features_only`; None for Swin's own patches of 4 x 4 px, the network that
            the four steps of the paper begin with.
        transformer: a timm Swin Transformer.
        image_size: px; must give a grid that Swin's windows cover in every stage: with windows of 7, a multiple of 224
            at stride 4, of 448 at stride 8, of 896 at stride 16. None is the smallest that fits.
        cnn_blocks: 1, 2 or 3 cuts the CNN after timm's feature map of that number, of an EfficientNet stride 4, 8, 16.
            What comes after is not built.
        stem_stride: 2, or 1 for half of these strides.
        aggregation: "token" is the virtual token of the paper (see `SwinStages`), "mean" the average over the last grid
            as in the released code.
        position_embedding: as in the paper; the released code has none.
        embedding_dim: length of the descriptor.
        pretrained: start from ImageNet weights: True, or "cnn" or "transformer" for one of the two alone.

    Attributes:
        arguments: what to give to the constructor for a network of this shape, kept up to date by the surgery.

    Raises:
        ValueError: an argument is not one of the above, an image size that does not fit (with those that do), or
            forward gets something else than images of that size.
        OSError: the ImageNet weights could not be had.
    """

    # modules that ImageNet weights exist for
    backbone_modules = ("patch_embedding.cnn", "transformer")

    def __init__(
        self,
        cnn: str | None = "tf_efficientnet_b5.ns_jft_in1k",
        transformer: str = "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        image_size: int | None = None,
        cnn_blocks: int = 1,
        stem_stride: int = 2,
        aggregation: Aggregation = "token",
        position_embedding: bool = True,
        embedding_dim: int = 512,
        pretrained: bool | Literal["cnn", "transformer"] = False,
    ) -> None:
        super().__init__()
        if aggregation not in ("token", "mean"):
            raise ValueError(f"aggregation is 'token' or 'mean', not {aggregation!r}.")
        if pretrained not in (True, False, "cnn", "transformer"):
            raise ValueError(f"pretrained is True, False, 'cnn' or 'transformer', not {pretrained!r}.")
        stride = _stride(cnn, cnn_blocks, stem_stride)
        image_size = _fitting_size(image_size, smallest_grid(transformer), stride, transformer)
        self._grid = image_size // stride
        self._grad_checkpointing = False
        self.embedding_dim = embedding_dim
        self.arguments: dict[str, Any] = {
            "cnn": cnn,
            "transformer": transformer,
            "image_size": image_size,
            "cnn_blocks": cnn_blocks,
            "stem_stride": stem_stride,
            "aggregation": aggregation,
            "position_embedding": position_embedding,
            "embedding_dim": embedding_dim,
        }
        swin = create_swin(transformer, pretrained in (True, "transformer"), self._grid)
        self.transformer = SwinStages(swin)
        channels, features = self.transformer.channels
        self.patch_embedding = (
            swin.patch_embed if cnn is None else self._cnn_patch_embedding(self.arguments, pretrained in (True, "cnn"))
        )
        token = trunc_normal_(torch.empty(1, 1, channels), std=0.02)
        self.token = nn.Parameter(token) if aggregation == "token" else None
        self.neck = neck(features, embedding_dim)
        self.to(memory_format=torch.channels_last)

    @property
    def image_size(self) -> int:
        """The side of the square images that the network takes, px."""
        return self.arguments["image_size"]

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        check_images(images, self.training, self.image_size)
        return self.neck(self.transformer(self.patch_embedding(images), self.token))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks of CNN and Swin again in backward instead of keeping them: less memory, more time, same
        result. What is put in by the surgery follows suit.

        Raises:
            ValueError: the CNN has no blocks that this is known for, see `checkpointing`.
        """
        if self.arguments["cnn"] is not None:
            checkpoint_blocks(self.get_submodule("patch_embedding.cnn"), enable)
        checkpoint_blocks(self.transformer, enable)
        self._grad_checkpointing = enable

    def replace_patch_embedding(
        self, cnn: str, cnn_blocks: int = 2, stem_stride: int = 2, pretrained: bool = False
    ) -> list[str]:
        """Put the first blocks of a CNN where the patches are made now (step 2 of the paper's four).

        Transformer, token and neck stay as they are, and so does the grid: `image_size` becomes the grid's side times
        the new stride. Nothing of the old patch embedding is carried over to another architecture. To the same one goes
        what has the same name and shape; with `pretrained`, only what is not of the CNN.

        Args:
            cnn: see the class.
            cnn_blocks: see the class.
            stem_stride: see the class.
            pretrained: start the CNN from ImageNet weights.

        Returns:
            Names of the parameters that were not carried over: new, or from ImageNet.

        Raises:
            ValueError, OSError: see the class; the network is left as it was.
        """
        return self._new_patch_embedding(cnn, cnn_blocks, stem_stride, pretrained, keep_cnn=not pretrained)

    def insert_cnn_block(self, pretrained: bool = False, stem_stride: int | None = None) -> list[str]:
        """Put one more block of the same CNN between CNN and Swin (step 4 of the paper's four).

        The grid stays, so the image size doubles with the stride of the block, and halves with that of the stem: a
        block and `stem_stride=1` together leave it as it is. The CNN's present blocks and whatever else still fits keep
        their weights; a projection of other width does not.

        Args:
            pretrained: start the new block from ImageNet weights.
            stem_stride: 1 or 2, see the class; None keeps it. The stem's weights are the same for both.

        Returns:
            Names of the parameters that were not carried over.

        Raises:
            ValueError: there is no CNN, no block left to insert, or another stride; the network is left as it was.
            OSError: the ImageNet weights could not be had.
        """
        now = self.arguments
        if now["cnn"] is None:
            raise ValueError("There is no CNN to insert a block of: call replace_patch_embedding first.")
        stem_stride = now["stem_stride"] if stem_stride is None else stem_stride
        return self._new_patch_embedding(now["cnn"], now["cnn_blocks"] + 1, stem_stride, pretrained, keep_cnn=True)

    def _new_patch_embedding(
        self, cnn: str, cnn_blocks: int, stem_stride: int, pretrained: bool, keep_cnn: bool
    ) -> list[str]:
        side = self._grid * _stride(cnn, cnn_blocks, stem_stride)
        changes = {"cnn": cnn, "cnn_blocks": cnn_blocks, "stem_stride": stem_stride, "image_size": side}
        arguments = {**self.arguments, **changes}
        fresh = self._cnn_patch_embedding(arguments, pretrained)
        new = [name for name, _ in fresh.named_parameters()]
        # another architecture's weights would fit by accident here and there
        if _stem(self.arguments["cnn"]) == _stem(cnn):
            new = _carry_over(self.patch_embedding, fresh, lambda name: keep_cnn or not name.startswith("cnn."))
        reference = next(self.parameters())
        fresh.to(reference.device, reference.dtype).to(memory_format=torch.channels_last)
        checkpoint_blocks(fresh.cnn, self._grad_checkpointing)
        self.patch_embedding, self.arguments = fresh.train(self.training), arguments
        return [f"patch_embedding.{name}" for name in new]

    def _cnn_patch_embedding(self, arguments: dict[str, Any], pretrained: bool) -> CNNPatchEmbedding:
        keys = ("cnn", "cnn_blocks", "stem_stride", "position_embedding")
        chosen = {key: arguments[key] for key in keys}
        return CNNPatchEmbedding(
            **chosen, grid=self._grid, channels=self.transformer.channels[0], pretrained=pretrained
        )


def _stride(cnn: str | None, cnn_blocks: int, stem_stride: int) -> int:
    """The stride of the grid, in px."""
    if cnn is None:
        return PATCH
    if cnn_blocks not in (1, 2, 3):
        raise ValueError(f"cnn_blocks is 1, 2 or 3, not {cnn_blocks}.")
    with torch.device("meta"), torch.no_grad():
        backbone = create_feature_backbone(cnn, False, stem_stride, (cnn_blocks,)).eval()
        (reduction,) = backbone.feature_info.reduction()
        stride = reduction * stem_stride // 2
        try:
            (features,) = backbone(torch.empty(1, 3, 14 * stride, 14 * stride))
            side = features.shape[2]
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{cnn} cannot be cut after map {cnn_blocks} with stem_stride {stem_stride}: {error}"
            ) from None
    if side != 14:
        raise ValueError(f"{cnn} makes {side} positions of {14 * stride} px, not 14: choose an EfficientNet.")
    return stride


def _stem(cnn: str | None) -> str | None:
    """The architecture, whatever its weights were trained on."""
    return cnn and cnn.partition(".")[0]


def _fitting_size(image_size: int | None, smallest: int, stride: int, transformer: str) -> int:
    side = smallest * stride
    if image_size is None:
        return side
    if image_size < side or image_size % side:
        raise ValueError(
            f"image_size {image_size} does not fit: after a stride of {stride} the windows of {transformer} cover "
            f"images of {side}, {2 * side}, {3 * side} ... px. Choose one of these, or other cnn_blocks or stem_stride "
            f"(stride 4 takes multiples of {smallest * 4} px, stride 8 of {smallest * 8}, stride 16 of "
            f"{smallest * 16})."
        )
    return image_size


@torch.no_grad()
def _carry_over(old: nn.Module, new: nn.Module, wanted: Callable[[str], bool]) -> list[str]:
    """Copy what is wanted of the same name and shape; the names of the parameters of `new` that got nothing."""
    held, fresh = old.state_dict(), new.state_dict()
    fitting = {n for n, value in fresh.items() if wanted(n) and n in held and held[n].shape == value.shape}
    for name in fitting:
        fresh[name].copy_(held[name])
    before = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in fitting:
            parameter.requires_grad_(before[name].requires_grad)
    return [name for name, _ in new.named_parameters() if name not in fitting]
