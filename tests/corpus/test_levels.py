"""Grey levels: exact fractions, thresholds, range, and resampling by area."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_files import (
    IMAGES,
    SIZES,
    read,
    refused,
    write_npy,
    write_picture,
)
from smtkit.config import PixelConfig, TokenizeConfig, resolve
from smtkit.corpus.levels import overlaps, resample, to_levels
from smtkit.errors import InputOutputError, UsageError
from smtkit.stages import tokenize


def levels_of(values: Any, **settings: Any) -> list[int]:
    pixels = to_levels(np.asarray(values)[None, None], PixelConfig(**settings), "here", 0)
    return pixels[0, 0].tolist()


@pytest.mark.parametrize("levels", [2, 3, 5, 16, 17, 100, 255, 256])
@pytest.mark.parametrize("maximum", [1, 15, 16, 100, 255, 1000, 65535])
def test_levels_of_integers_are_exact_fractions(levels, maximum):
    values = list(range(0, maximum + 1, math.ceil(maximum / 500)))

    found = levels_of(np.array(values, np.uint16), levels=levels, maximum=maximum)

    assert found == [value * levels // (maximum + 1) for value in values]


def test_all_levels_keep_integers_and_floats_of_whole_numbers():
    for maximum in range(1, 256):
        values = list(range(maximum + 1))
        settings = {"levels": maximum + 1, "maximum": maximum}
        assert levels_of(values, **settings) == values
        assert levels_of([float(value) for value in values], **settings) == values


@given(
    levels=st.integers(2, 256),
    numerators=st.lists(st.integers(0, 2**20), min_size=1, max_size=20),
)
def test_levels_of_floats_are_exact_fractions(levels, numerators):
    found = levels_of([number / 2**20 for number in numerators], levels=levels)

    assert found == [min(number * levels // 2**20, levels - 1) for number in numerators]


def test_binarize_is_at_its_threshold():
    assert levels_of([0, 127, 128, 255], levels=2, binarize=0.5) == [0, 0, 1, 1]
    assert levels_of([0.0, 0.25, 0.2499], levels=2, binarize=0.25) == [0, 1, 0]
    assert levels_of([0, 4, 5, 8], levels=2, binarize=0.5, maximum=8) == [0, 1, 1, 1]
    assert levels_of([0, 255], levels=2, binarize=0) == [1, 1]
    assert levels_of([0, 254, 255], levels=2, binarize=1) == [0, 0, 1]


def test_digits_at_their_own_levels_are_themselves(tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    as_floats = write_npy(tmp_path / "floats.npy", digits.images)
    np.savez(tmp_path / "bytes.npz", images=digits.images.astype(np.uint8), labels=digits.target)

    pixels, labels = read(tmp_path / "bytes.npz", maximum=16, levels=17)

    assert np.array_equal(pixels, digits.images)
    assert np.array_equal(labels, digits.target)
    assert np.array_equal(read(as_floats, maximum=16, levels=17)[0], digits.images)


@pytest.mark.parametrize(
    ("values", "settings", "found"),
    [
        (np.full((1500, 2, 2), 7, np.int16), {}, -1),
        (np.full((1500, 2, 2), 7, np.int16), {}, 256),
        (np.full((1500, 2, 2), 7, np.uint8), {"maximum": 16}, 17),
        (np.full((1500, 2, 2), 0.5), {}, math.nan),
        (np.full((1500, 2, 2), 0.5), {}, math.inf),
        (np.full((1500, 2, 2), 0.5), {}, 1.5),
        (np.full((1500, 2, 2), 0.5), {"size": (1, 1)}, -0.5),
    ],
)
def test_values_out_of_range_are_named(tmp_path, values, settings, found):
    values[1200, 1, 0] = found
    message = refused(InputOutputError, write_npy(tmp_path / "a.npy", values), **settings)

    assert f"image 1200, row 1, column 0: {found}" in message


@pytest.mark.parametrize(
    "settings",
    [
        {"levels": 1},
        {"levels": 257},
        {"size": (0, 3)},
        {"size": (3, -1)},
        {"maximum": 0},
        {"maximum": math.nan},
        {"maximum": math.inf},
        {"binarize": 1.5, "levels": 2},
        {"binarize": -0.1, "levels": 2},
        {"binarize": math.nan, "levels": 2},
        {"binarize": 0.5, "levels": 4},
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings):
    path = write_npy(tmp_path / "a.npy", IMAGES)
    flags = {f"pixel.{name}": value for name, value in settings.items()}
    flags |= {"inputs": [str(path)], "tokenizer": "pixel"}
    with pytest.raises(UsageError, match=next(iter(settings))):
        tokenize.run(resolve(TokenizeConfig, flags=flags), tmp_path / "out")


def slow_resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel by pixel: the overlap of each old one with each new one, in old pixels."""
    rows, columns = image.shape
    result = np.zeros((height, width))
    for new_row in range(height):
        for new_column in range(width):
            top, bottom = new_row * rows / height, (new_row + 1) * rows / height
            left, right = new_column * columns / width, (new_column + 1) * columns / width
            for row in range(rows):
                for column in range(columns):
                    tall = min(bottom, row + 1) - max(top, row)
                    wide = min(right, column + 1) - max(left, column)
                    if tall > 0 and wide > 0:
                        result[new_row, new_column] += tall * wide * image[row, column]
            result[new_row, new_column] /= (bottom - top) * (right - left)
    return result


@given(stored=st.tuples(SIZES, SIZES), size=st.tuples(SIZES, SIZES), seed=st.integers(0, 99))
def test_resampling_is_the_mean_over_the_overlap(stored, size, seed):
    values = np.random.default_rng(seed).random((2, *stored))

    found = resample(values, *size)

    assert found.shape == (2, *size)
    for image, expected in zip(found, values, strict=True):
        np.testing.assert_allclose(image, slow_resample(expected, *size), atol=1e-12)
    np.testing.assert_allclose(found.mean((1, 2)), values.mean((1, 2)), atol=1e-12)


@given(stored=st.integers(1, 60), size=st.integers(1, 60))
def test_overlaps_share_out_every_stored_pixel(stored, size):
    weights = overlaps(stored, size)

    assert weights.sum(axis=1).tolist() == [stored] * size
    assert weights.sum(axis=0).tolist() == [size] * stored


@pytest.mark.parametrize("settings", [{}, {"levels": 2, "binarize": 0.3}])
def test_resampling_to_the_same_size_changes_nothing(tmp_path, settings):
    path = write_npy(tmp_path / "a.npy", IMAGES)

    assert np.array_equal(read(path, size=(4, 3), **settings)[0], read(path, **settings)[0])


@given(value=st.integers(0, 255), stored=st.tuples(SIZES, SIZES), size=st.tuples(SIZES, SIZES))
def test_resampling_keeps_equal_integers(value, stored, size):
    values = np.full((1, *stored), value, np.uint8)

    assert (to_levels(values, PixelConfig(size=size), "here", 0) == value).all()


def test_means_are_quantised_and_not_rounded_before():
    settings = PixelConfig(size=(1, 1), levels=4)
    booleans = np.array([[[True, False], [False, False]]])
    integers = np.array([[[127, 128], [128, 128]]], np.uint8)

    assert to_levels(booleans, settings, "here", 0).tolist() == [[[1]]]
    assert to_levels(integers, settings, "here", 0).tolist() == [[[2]]]


def test_pictures_are_resampled_as_arrays_are(tmp_path):
    picture = write_picture(tmp_path / "a.png", IMAGES[0])
    array = write_npy(tmp_path / "a.npy", IMAGES[:1])

    assert np.array_equal(read(picture, size=(3, 5))[0], read(array, size=(3, 5))[0])
