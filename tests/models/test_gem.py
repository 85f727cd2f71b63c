import pytest
import torch

from landmark_retrieval.models import GeMNet


def test_with_and_without_neck():
    images = torch.randn(2, 3, 64, 64)
    assert GeMNet("tf_efficientnet_lite0", embedding_dim=None).eval()(images).shape == (2, 1280)
    assert GeMNet("resnet18", embedding_dim=128).eval()(images).shape == (2, 128)


def test_transformer_is_refused():
    with pytest.raises(ValueError, match="convolutional"):
        GeMNet("swin_tiny_patch4_window7_224")
