import numpy as np
import torch

from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainingTransform, normalize


def draws(count, image, side=64, first=0):
    transform = TrainingTransform(side)
    for number in range(first, first + count):
        transform.seed(0, number)
        yield transform(image)


def test_same_seed_same_picture():
    image = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)
    first, second = list(draws(8, image)), list(draws(8, image))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_shape_and_type():
    for made in draws(5, np.full((31, 97, 3), 200, np.uint8), side=48):
        assert made.shape == (48, 48, 3)
        assert made.dtype == np.uint8


def test_half_of_the_pictures_are_flipped():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 255
    right = sum(made[:, 32:].mean() > made[:, :32].mean() for made in draws(400, image))
    assert 160 < right < 240


def test_draws_are_independent():
    """Which pictures are flipped says nothing about which are shifted, scaled or rotated."""
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:, :32] = 128
    made = list(draws(600, image))
    flipped = np.array([m[:, 44:52].max() < 200 for m in made])
    moved = np.array([(m.max(-1) < 40)[:, 0].any() or (m.max(-1) < 40)[0].any() for m in made])
    assert abs(np.corrcoef(flipped, moved)[0, 1]) < 0.12


def test_half_have_a_hole_of_at_most_four_tenths_and_the_border_is_black():
    """On a white picture black comes from the cutout and from the border of shift, scale and rotation alone."""
    black = np.array([(made.max(-1) < 40).mean() for made in draws(400, np.full((80, 80, 3), 255, np.uint8))])
    # untouched: no hole (0.5), and no affine map (0.3) or one that enlarges enough to leave no border (0.04 of 0.7)
    assert 0.11 < (black < 0.001).mean() < 0.22
    assert black.max() < 0.75


def test_normalize_is_channels_last_and_equals_the_formula():
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    expected = (images / 255.0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    made = normalize(images)
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, expected.permute(0, 3, 1, 2), rtol=0, atol=2e-6)
