import torch

from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize


def test_normalize_is_channels_last_and_equals_the_formula():
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    expected = (images / 255.0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    made = normalize(images)
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, expected.permute(0, 3, 1, 2), rtol=0, atol=2e-6)
