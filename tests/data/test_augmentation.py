import io
import multiprocessing
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from landmark_retrieval.data.augmentation import (
    TRANSFORMS,
    AlbumentationsTransform,
    Augmentation,
    FastTransform,
    Move,
    augment,
    draw,
    training_transform,
)
from landmark_retrieval.data.decode import BrokenPhotoError, decode, resize
from landmark_retrieval.errors import LandmarkRetrievalError


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"quality": 95} if form == "JPEG" else {}) | options)
    return buffer.getvalue()


def photo(height, width, seed=0):
    """Noise at all scales, as in photos: half the scale, half the contrast."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128.0)
    for cells, contrast in ((3, 80), (6, 60), (12, 40), (25, 25), (50, 15), (100, 10), (200, 6)):
        noise = rng.uniform(-contrast, contrast, (cells, cells, 3))
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


def from_recipe(applied, width, height):
    """What albumentations drew, as an augmentation: the shift is read off where its matrix puts the middle."""
    move = hole = None
    if "Affine" in applied:
        matrix = applied["Affine"]["matrix"]
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        x, y = matrix[:2, :2] @ middle + matrix[:2, 2] - middle
        move = Move(x / width, y / height, applied["Affine"]["scale"]["x"], applied["Affine"]["rotate"])
    if "CoarseDropout" in applied:
        hole = tuple(applied["CoarseDropout"]["holes"][0].tolist())
    return Augmentation("HorizontalFlip" in applied, move, hole)


def pairs(image, side, count, form="JPEG"):
    """The same draws, made by albumentations and at once."""
    recipe = AlbumentationsTransform(side)
    data = encoded(image, form)
    for number in range(count):
        picture, applied = recipe.applied(decode(data), (side, number))
        augmentation = from_recipe(applied, image.shape[1], image.shape[0])
        yield picture, augment(data, augmentation, side), augmentation


def difference(first, second):
    return np.abs(first.astype(int) - second).mean()


# larger, smaller, a panorama, a size that is no whole number of blocks; decoded at 2/8, 3/8, 4/8 and in full
SIZES = [(600, 800, 128), (800, 600, 224), (600, 800, 256), (600, 800, 448), (200, 900, 160), (90, 120, 160)]
SIZES += [(601, 443, 128), (700, 1300, 40), (160, 1501, 96)]


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_the_same_draws_give_the_same_pictures(height, width, side):
    for number, (recipe, fast, _) in enumerate(pairs(photo(height, width), side, 12)):
        assert fast.shape == (side, side, 3) and fast.dtype == np.uint8
        assert difference(recipe, fast) < 2.5, f"draw {number}"


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_pictures_are_as_sharp_as_the_recipe_makes_them(height, width, side):
    """Neither aliased nor blurred: the mean step from pixel to pixel, along each axis, is the same."""
    image = photo(height, width, seed=1)
    for axis in (0, 1):
        steps = [
            [np.abs(np.diff(made.astype(int), axis=axis)).mean() for made in (recipe, fast)]
            for recipe, fast, _ in pairs(image, side, 12)
        ]
        recipe, fast = np.mean(steps, 0)
        assert fast == pytest.approx(recipe, rel=0.08)


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_geometry_is_the_recipes_to_a_fraction_of_a_pixel(height, width, side, form):
    """Red and green say where in the photo a pixel comes from."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    # blue marks what comes from the photo at all
    image = np.rint(np.dstack([30 + 200 * x, 30 + 200 * y, np.full_like(x, 255)])).astype(np.uint8)
    for recipe, fast, augmentation in pairs(image, side, 12, form):
        inside = cv2.erode(((recipe[..., 2] > 245) & (fast[..., 2] > 245)).astype(np.uint8), np.ones((5, 5))) > 0
        assert inside.mean() > 0.2
        off = (fast.astype(float) - recipe)[inside][:, :2] * side / 200
        if augmentation.move:
            off *= augmentation.move.scale
        assert np.abs(off.mean(0)).max() < 0.15, f"shifted by {off.mean(0)} pixels"
        # the same left as right, top as bottom: neither scaled nor turned
        rows, columns = np.nonzero(inside)
        for place in (rows - rows.mean(), columns - columns.mean()):
            slope = place @ off / (place @ place)
            assert np.abs(slope).max() * side < 0.4
        # what comes from the photo, and what is black, is the same but for a seam
        assert np.mean((recipe[..., 2] > 127) != (fast[..., 2] > 127)) < 2 / side


def test_the_hole_is_in_the_same_place():
    image = np.full((150, 200, 3), 250, np.uint8)
    holes = 0
    for recipe, fast, augmentation in pairs(image, 64, 40):
        if augmentation.hole and augmentation.move is None:
            holes += 1
            np.testing.assert_array_equal(recipe.max(-1) < 40, fast.max(-1) < 40)
            assert (fast.max(-1) < 40).any()
    assert holes >= 4


def test_nothing_drawn_is_the_resized_photo():
    """What descriptions are made from: decoded in full, averaged by area."""
    for height, width, side in SIZES:
        data = encoded(photo(height, width))
        assert difference(augment(data, Augmentation(), side), resize(decode(data), side)) < 2
        flipped = augment(data, Augmentation(flip=True), side)
        assert difference(flipped[:, ::-1], augment(data, Augmentation(), side)) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_photos_are_turned_upright_first(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(300, 400), form, exif=exif)
    upright = encoded(decode(data), "PNG")
    moved = Move(0.1, -0.05, 0.9, 8.0)
    for side in (96, 256):
        for drawn in (Augmentation(), Augmentation(True), Augmentation(True, moved, (3, 5, 30, 20))):
            assert difference(augment(data, drawn, side), augment(upright, drawn, side)) < 1.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_grey_and_cmyk_photos(name, mode):
    image = Image.fromarray(photo(300, 400)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    transform = training_transform(name, 96)
    made, expected = (transform(data, (3,)) for data in (buffer.getvalue(), encoded(np.asarray(image.convert("RGB")))))
    assert difference(made, expected) < 2


def test_what_lies_outside_is_black():
    data = encoded(np.full((60, 80, 3), 255, np.uint8))
    made = augment(data, Augmentation(move=Move(0.2, 0.1, 1.0, 0.0)), 100)
    assert made[:, :18].max() < 5 and made[:8].max() < 5
    assert made[12:, 22:].min() > 250
    # but not without a move, not even at the edge of an enlarged photo
    assert augment(data, Augmentation(flip=True), 300).min() > 250


DRAWS = 3000


@pytest.fixture(scope="module")
def drawn():
    """Many draws of each: rows of flip, moved, shift x and y, scale, degrees, hole, its height, width, top, left."""
    side = 100
    recipe = AlbumentationsTransform(side)
    image = np.zeros((60, 80, 3), np.uint8)
    slow = [from_recipe(recipe.applied(image, (1, number))[1], 80, 60) for number in range(DRAWS)]
    fast = [draw(np.random.default_rng((1, number)), side) for number in range(DRAWS)]
    return tuple(np.array([row(augmentation) for augmentation in made]) for made in (slow, fast))


def row(augmentation):
    move, hole = augmentation.move, augmentation.hole
    moved = (move.shift_x, move.shift_y, move.scale, move.degrees) if move else (np.nan,) * 4
    holed = (hole[3] - hole[1], hole[2] - hole[0], hole[1], hole[0]) if hole else (np.nan,) * 4
    return (augmentation.flip, move is not None, *moved, hole is not None, *holed)


def test_shares_of_flips_moves_and_holes(drawn):
    for made in drawn:
        for column, share in ((0, 0.5), (1, 0.7), (6, 0.5)):
            assert made[:, column].mean() == pytest.approx(share, abs=4 * (share * (1 - share) / DRAWS) ** 0.5)


def test_draws_have_the_same_distributions(drawn):
    """Kolmogorov and Smirnov's test, at one in a thousand, and the recipe's limits."""
    limits = {2: (-0.2, 0.2), 3: (-0.2, 0.2), 4: (0.8, 1.2), 5: (-10, 10), 7: (20, 40), 8: (20, 40)}
    limits |= {9: (0, 80), 10: (0, 80)}
    # albumentations shifts by whole pixels, of 1/80 and 1/60; holes are whole pixels in both
    grain = {2: 1 / 80, 3: 1 / 60, 7: 1, 8: 1, 9: 1, 10: 1}
    rng = np.random.default_rng(0)
    for column, (low, high) in limits.items():
        first, second = (made[~np.isnan(made[:, column]), column] for made in drawn)
        for values in (first, second):
            assert low - 1e-9 <= values.min() and values.max() <= high + 1e-9
            assert values.max() - values.min() > 0.9 * (high - low)
        if column in (2, 3):  # rounded toward zero
            second = np.trunc(second / grain[column] + 1e-9) * grain[column]
        # ties say nothing about the distribution: spread them, as far as the grain goes
        blur = grain.get(column, 0)
        first, second = (values + rng.uniform(0, blur, len(values)) for values in (first, second))
        places = np.sort(np.concatenate([first, second]))
        below = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (first, second)]
        limit = 1.95 * (1 / len(first) + 1 / len(second)) ** 0.5
        assert np.abs(below[0] - below[1]).max() < limit, f"column {column}"
        assert first.mean() == pytest.approx(second.mean(), abs=4 * first.std() * (2 / len(first)) ** 0.5)
        assert first.std() == pytest.approx(second.std(), rel=0.08)


def test_draws_are_independent(drawn):
    """Which photos are flipped says nothing about which are moved or get a hole, nor one number about the next."""
    for made in drawn:
        assert np.abs(np.corrcoef(made[:, (0, 1, 6)].T) - np.eye(3)).max() < 4 / DRAWS**0.5
        moves = made[made[:, 1] == 1][:, 2:6]
        assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 4 / len(moves) ** 0.5
        holes = made[made[:, 6] == 1][:, 7:9]
        assert np.abs(np.corrcoef(holes.T) - np.eye(2)).max() < 4 / len(holes) ** 0.5


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pictures_depend_on_the_seed_alone(name):
    data = encoded(photo(60, 90))
    transform, other = training_transform(name, 48), training_transform(name, 48)
    first = [transform(data, (4, number)) for number in range(8)]
    second = [other(data, (4, number)) for number in reversed(range(8))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(made.shape == (48, 48, 3) and made.dtype == np.uint8 for made in first)
    assert len({made.tobytes() for made in first}) == 8
    assert not np.array_equal(first[0], transform(data, (5, 0)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_half_are_flipped_and_half_have_a_hole(name):
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:, :32] = 128
    data, transform = encoded(image), training_transform(name, 64)
    made = [transform(data, (9, number)) for number in range(400)]
    # which side is the bright one, where there is a photo at all
    flipped = sum(m[:, :32][m[:, :32] > 60].mean() > m[:, 32:][m[:, 32:] > 60].mean() for m in made)
    assert 160 < flipped < 240
    # untouched by black: no hole (0.5), and no move (0.3) or one that enlarges enough to leave no border
    assert 0.11 < np.mean([(m.max(-1) < 40).mean() < 0.001 for m in made]) < 0.22


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_can_be_pickled(name):
    data, transform = encoded(photo(50, 70)), training_transform(name, 32)
    expected = transform(data, (2, 3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(transform))(data, (2, 3)), expected)


def test_a_spawned_process_makes_the_same_picture():
    data, transform = encoded(photo(50, 70)), FastTransform(32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        made = pool.apply(transform, (data, (2, 3)))
    np.testing.assert_array_equal(made, transform(data, (2, 3)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_broken_photo_is_refused(name):
    transform = training_transform(name, 32)
    for data in (b"", b"<html>", encoded(photo(50, 70))[:-300]):
        with pytest.raises(BrokenPhotoError):
            transform(data, (0, 0))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    ("height", "width", "side"), [(1, 1, 5), (3, 900, 40), (900, 3, 40), (17, 23, 1), (2, 40000, 32)]
)
def test_any_size_goes(name, height, width, side):
    data = encoded(np.full((height, width, 3), 99, np.uint8))
    transform = training_transform(name, side)
    for number in range(5):
        assert transform(data, (number,)).shape == (side, side, 3)


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(LandmarkRetrievalError, match="fast, albumentations"):
        training_transform("slow", 64)
