import torch

from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize


def test_normalize_is_channels_last_and_equals_the_formula():
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    expected = (images / 255.0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    made = normalize(images)
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, expected.permute(0, 3, 1, 2), rtol=0, atol=2e-6)


def test_tracing_leaves_nothing_behind():
    """What an export makes of it must not be met again in a later call."""

    class Normalize(torch.nn.Module):
        def forward(self, images):
            return normalize(images)

    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    exported = torch.export.export(Normalize(), (images,), strict=False).module()
    with torch.inference_mode():
        expected = normalize(images)
    torch.testing.assert_close(normalize(images), expected)
    torch.testing.assert_close(exported(images), expected)
    assert float(expected.abs().max()) < 3
