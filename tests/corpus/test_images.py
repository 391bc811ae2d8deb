"""Images from files: each format against the array it was written from, levels, means, damage."""

import contextlib
import gzip
import io
import math
import os
import struct
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from smtkit.config import PixelConfig, TokenizeConfig, resolve
from smtkit.corpus.images import open_images
from smtkit.corpus.levels import overlaps, resample, to_levels
from smtkit.errors import InputOutputError, UsageError
from smtkit.stages import tokenize

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([3, 0, 255, 1, 3])
SIZES = st.integers(1, 12)


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">I{values.ndim}I", 0x00000800 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(path: Path, values: np.ndarray) -> Path:
    content = idx_bytes(values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def write_picture(path: Path, values: np.ndarray) -> Path:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(values).save(path)
    return path


def read(*inputs: Path, **settings: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """All levels and labels; what is known before they are read must hold of them."""
    images = open_images([str(path) for path in inputs], PixelConfig(**settings))
    blocks = list(images.blocks())
    pixels = np.concatenate([block.pixels for block in blocks])
    assert pixels.dtype == np.int64
    assert pixels.shape == (images.count, images.height, images.width)
    assert [block.labels is not None for block in blocks] == [images.labelled] * len(blocks)
    if not images.labelled:
        return pixels, None
    labels = np.concatenate([block.labels for block in blocks])
    assert labels.dtype == np.int64
    assert labels.shape == (images.count,)
    return pixels, labels


def refused(error: type[Exception], *inputs: Path, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        read(*inputs, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(inputs[-1]) in message
    return message


# IDX


@pytest.mark.parametrize("labels", [None, "labels"])
@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("spelling", ["train-{}-idx{}-ubyte", "t10k-{}.idx{}-ubyte"])
def test_idx_gives_the_images_and_labels_written(tmp_path, spelling, zipped, labels):
    images = write_idx(tmp_path / (spelling.format("images", 3) + zipped), IMAGES)
    if labels:
        write_idx(tmp_path / (spelling.format("labels", 1) + zipped), LABELS)

    pixels, found = read(images)

    assert np.array_equal(pixels, IMAGES)
    assert found is None if labels is None else np.array_equal(found, LABELS)


@pytest.mark.parametrize(("images", "labels"), [(".gz", ""), ("", ".gz")])
def test_labels_may_be_compressed_where_images_are_not(tmp_path, images, labels):
    write_idx(tmp_path / f"train-labels-idx1-ubyte{labels}", LABELS)
    path = write_idx(tmp_path / f"train-images-idx3-ubyte{images}", IMAGES)

    assert np.array_equal(read(path)[1], LABELS)


@given(
    values=arrays_of.arrays(
        np.uint8, arrays_of.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)
    ),
    zipped=st.booleans(),
)
def test_idx_round_trip(values, zipped):
    with tempfile.TemporaryDirectory() as directory:
        name = "images-idx3-ubyte.gz" if zipped else "images-idx3-ubyte"
        pixels, _ = read(write_idx(Path(directory, name), values))

    assert np.array_equal(pixels, values)


def test_blocks_are_bounded_and_can_be_read_again(tmp_path):
    values = np.arange(2500 * 6, dtype=np.uint32).astype(np.uint8).reshape(2500, 2, 3)
    path = write_idx(tmp_path / "train-images-idx3-ubyte", values)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(2500) % 7)
    images = open_images([str(path)], PixelConfig())

    for _ in range(2):
        blocks = list(images.blocks())
        assert [len(block.pixels) for block in blocks] == [1024, 1024, 452]
        assert np.array_equal(np.concatenate([block.pixels for block in blocks]), values)
        assert np.concatenate([block.labels for block in blocks]).tolist() == [
            number % 7 for number in range(2500)
        ]


def test_blocks_of_large_images_have_fewer(tmp_path):
    path = write_npy(tmp_path / "large.npy", np.zeros((3, 1000, 1000), np.uint8))

    whole = open_images([str(path)], PixelConfig()).blocks()
    small = open_images([str(path)], PixelConfig(size=(10, 10))).blocks()

    assert [block.pixels.shape for block in whole] == [(1, 1000, 1000)] * 3
    assert [block.pixels.shape for block in small] == [(1, 10, 10)] * 3


def test_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "images-idx3-ubyte.gz"
    content = gzip.compress(idx_bytes(IMAGES))
    for length in (len(content) // 2, len(content) - 8, len(content) - 1):
        path.write_bytes(content[:length])
        refused(InputOutputError, path)


def test_gzip_with_a_wrong_checksum_is_refused(tmp_path):
    path = tmp_path / "images-idx3-ubyte.gz"
    content = bytearray(gzip.compress(idx_bytes(IMAGES)))
    content[-8] ^= 1
    path.write_bytes(content)

    refused(InputOutputError, path)


def test_file_that_is_no_gzip_is_refused(tmp_path):
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(idx_bytes(IMAGES))

    refused(InputOutputError, path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:9]])
def test_header_that_promises_more_than_there_is_is_refused(tmp_path, change, zipped):
    path = tmp_path / ("images-idx3-ubyte.gz" if zipped else "images-idx3-ubyte")
    content = change(idx_bytes(IMAGES))
    path.write_bytes(gzip.compress(content) if zipped else content)

    assert "ends before what its header promises" in refused(InputOutputError, path)


@pytest.mark.parametrize("zipped", [False, True])
def test_trailing_bytes_are_refused(tmp_path, zipped):
    path = tmp_path / ("images-idx3-ubyte.gz" if zipped else "images-idx3-ubyte")
    content = idx_bytes(IMAGES) + b"\0"
    path.write_bytes(gzip.compress(content) if zipped else content)

    assert "(5, 4, 3)" in refused(InputOutputError, path)


def test_gzip_is_not_expanded_beyond_its_header(tmp_path, monkeypatch):
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(IMAGES) + bytes(10**7)))
    taken = []
    plain_read = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile,
        "read",
        lambda self, size=-1: taken.append(plain_read(self, size)) or taken[-1],
    )

    refused(InputOutputError, path)

    assert max(map(len, taken)) == IMAGES.size


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (1, 2**14, 2**14), (0, 4, 3), (5, 0, 3)])
def test_headers_of_no_images_and_of_enormous_ones_are_refused(tmp_path, shape):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x00000803, *shape))

    assert str(shape) in refused(InputOutputError, path)


def test_wrong_magic_number_is_refused(tmp_path):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x00000D03, 1, 1, 1) + bytes(4))

    assert "0x00000d03" in refused(InputOutputError, path)


def test_labels_are_no_images(tmp_path):
    path = write_idx(tmp_path / "train-labels-idx1-ubyte", LABELS)

    assert "(n, height, width)" in refused(InputOutputError, path)


@pytest.mark.parametrize("labels", [LABELS[:-1], np.append(LABELS, 1), IMAGES])
def test_labels_of_another_count_are_refused(tmp_path, labels):
    images = write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES)
    path = write_idx(tmp_path / "train-labels-idx1-ubyte", labels)

    with pytest.raises(InputOutputError, match=r"labels of 5 images are 5 integers") as caught:
        read(images)
    assert str(path) in str(caught.value)


def test_damaged_labels_are_refused(tmp_path):
    images = write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES)
    path = tmp_path / "train-labels-idx1-ubyte"
    for content in (idx_bytes(LABELS)[:-1], idx_bytes(LABELS) + b"\0"):
        path.write_bytes(content)
        with pytest.raises(InputOutputError, match="labels-idx1-ubyte"):
            read(images)


# NumPy


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, ">i2", np.uint16, np.int32, np.uint64])
@pytest.mark.parametrize("last", [(), (1,)])
def test_npy_of_integers_gives_the_values_written(tmp_path, dtype, last):
    values = (IMAGES // 2).astype(dtype)
    path = write_npy(tmp_path / "images.npy", values.reshape(*values.shape, *last))

    assert np.array_equal(read(path)[0], values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_of_floats_runs_from_0_to_1(tmp_path, dtype):
    values = np.array([[[0, 0.25, 0.5, 0.75, 1]]], dtype)
    path = write_npy(tmp_path / "images.npy", values)

    assert read(path)[0].tolist() == [[[0, 64, 128, 192, 255]]]
    assert read(path, levels=4)[0].tolist() == [[[0, 1, 2, 3, 3]]]


def test_npy_of_booleans_is_black_and_white(tmp_path):
    path = write_npy(tmp_path / "images.npy", IMAGES > 100)

    assert np.array_equal(read(path, levels=2)[0], IMAGES > 100)


def test_npy_of_format_2_is_read(tmp_path):
    path = tmp_path / "images.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, IMAGES, version=(2, 0))

    assert np.array_equal(read(path)[0], IMAGES)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [{}, {"labels": LABELS}, {"y": LABELS[:, None].astype("i2")}])
@pytest.mark.parametrize("name", ["images", "x_train"])
def test_npz_gives_the_images_and_labels_written(tmp_path, name, labels, save):
    path = tmp_path / "images.npz"
    save(path, **{name: IMAGES}, **labels)

    pixels, found = read(path)

    assert np.array_equal(pixels, IMAGES)
    assert np.array_equal(found, LABELS) if labels else found is None


def test_npz_takes_images_from_among_others(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, mean=IMAGES * 0, images=IMAGES)

    assert np.array_equal(read(path)[0], IMAGES)


@pytest.mark.parametrize("arrays", [{"a": IMAGES, "b": IMAGES}, {"y": LABELS}])
def test_npz_without_an_array_of_images_is_refused(tmp_path, arrays):
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)

    assert ", ".join(arrays) in refused(InputOutputError, path)


@pytest.mark.parametrize("labels", [LABELS[:3], LABELS / 2, LABELS - 1])
def test_npz_with_wrong_labels_is_refused(tmp_path, labels):
    path = tmp_path / "images.npz"
    np.savez(path, images=IMAGES, labels=labels)

    assert "labels" in refused(InputOutputError, path)


@pytest.mark.parametrize(
    "values",
    [
        IMAGES[0],
        IMAGES.reshape(5, 4, 3, 1, 1),
        np.zeros((5, 4, 3, 3), np.uint8),
        IMAGES.astype(complex),
        IMAGES.astype(str),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, values):
    path = write_npy(tmp_path / "images.npy", values)

    assert str(values.dtype) in refused(InputOutputError, path)


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def test_objects_are_not_unpickled(tmp_path):
    values = np.full((1, 1, 1), Trap(), object)
    np.savez(tmp_path / "images.npz", images=IMAGES, labels=values)

    assert "object" in refused(InputOutputError, write_npy(tmp_path / "images.npy", values))
    assert "object" in refused(InputOutputError, tmp_path / "images.npz")


def test_arrays_in_fortran_order_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("smtkit.corpus.images._BLOCK_IMAGES", 2)
    path = write_npy(tmp_path / "images.npy", np.asfortranarray(IMAGES))
    np.savez(tmp_path / "images.npz", images=np.asfortranarray(IMAGES))

    assert np.array_equal(read(path)[0], IMAGES)
    assert np.array_equal(read(tmp_path / "images.npz")[0], IMAGES)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:30]])
def test_damaged_npy_is_refused(tmp_path, change):
    path = write_npy(tmp_path / "images.npy", IMAGES)
    path.write_bytes(change(path.read_bytes()))

    refused(InputOutputError, path)


def test_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=IMAGES)
    content = path.read_bytes()
    changed = content.replace(IMAGES.tobytes(), bytes(IMAGES.size))
    assert changed != content
    for damaged in (content[:-30], content[:100], b"", changed):
        path.write_bytes(damaged)
        refused(InputOutputError, path)


def test_damage_never_raises_anything_else(tmp_path):
    """One byte replaced, at each of the first hundred of each format."""
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", buffer.getvalue())
    contents = {
        "images-idx3-ubyte": idx_bytes(IMAGES),
        "images-idx3-ubyte.gz": gzip.compress(idx_bytes(IMAGES)),
        "images.npy": buffer.getvalue(),
        "images.npz": archive.getvalue(),
    }
    for name, content in contents.items():
        path = tmp_path / name
        for position in range(min(100, len(content))):
            damaged = bytearray(content)
            damaged[position] ^= 0x5A
            path.write_bytes(damaged)
            with contextlib.suppress(InputOutputError):
                read(path)


# Pictures


def test_png_gives_the_pixels_written(tmp_path):
    path = write_picture(tmp_path / "a.png", IMAGES[0])

    pixels, labels = read(path)

    assert np.array_equal(pixels, IMAGES[:1])
    assert labels is None


def test_colours_become_gray(tmp_path):
    gray = np.repeat(IMAGES[0][..., None], 3, axis=2)

    assert np.array_equal(read(write_picture(tmp_path / "a.png", gray))[0], IMAGES[:1])


def test_jpeg_is_near_the_pixels_written(tmp_path):
    values = np.add.outer(np.arange(0, 128, 8), np.arange(0, 128, 8)).astype(np.uint8)

    pixels, _ = read(write_picture(tmp_path / "a.JPG", values))

    assert np.abs(pixels[0] - values).max() < 16


def test_directory_without_subdirectories_has_no_labels(tmp_path):
    for number in (2, 0, 1):
        write_picture(tmp_path / f"{number}.png", IMAGES[number])
    write_picture(tmp_path / ".hidden.png", IMAGES[3])
    (tmp_path / "notes.txt").write_text("no picture")

    pixels, labels = read(tmp_path)

    assert np.array_equal(pixels, IMAGES[:3])
    assert labels is None


def test_subdirectories_are_labels(tmp_path):
    for number, name in enumerate(["ant/b/1.png", "ant/z.png", "bee/a.png", "cat/a.png"]):
        write_picture(tmp_path / name, IMAGES[number])
    (tmp_path / "ant of no pictures").mkdir()

    pixels, labels = read(tmp_path)

    assert np.array_equal(pixels, IMAGES[:4])
    assert labels.tolist() == [0, 0, 1, 2]
    images = open_images([str(tmp_path)], PixelConfig())
    assert images.label_names == ["ant", "bee", "cat"]


def test_pictures_beside_subdirectories_of_them_are_refused(tmp_path):
    write_picture(tmp_path / "a.png", IMAGES[0])
    write_picture(tmp_path / "cat" / "a.png", IMAGES[0])

    refused(UsageError, tmp_path)


def test_directory_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")

    assert ".png" in refused(UsageError, tmp_path)


def test_picture_of_another_size_is_named(tmp_path):
    write_picture(tmp_path / "a.png", IMAGES[0])
    other = write_picture(tmp_path / "b.png", IMAGES[0].T)

    with pytest.raises(InputOutputError) as caught:
        read(tmp_path)
    assert all(part in str(caught.value) for part in (str(other), "(3, 4)", "(4, 3)"))
    assert "`pixel.size`" in caught.value.hint
    assert read(tmp_path, size=(2, 2))[0].shape == (2, 2, 2)


def test_corrupted_png_is_named(tmp_path):
    write_picture(tmp_path / "a.png", IMAGES[0])
    values = np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)
    path = write_picture(tmp_path / "b.png", values)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"text", content[:40] + bytes(2000)):
        path.write_bytes(damaged)
        refused(InputOutputError, path)


def test_pictures_of_16_bits_are_refused(tmp_path):
    path = write_picture(tmp_path / "a.png", IMAGES[0].astype(np.uint16) * 257)

    assert "8 bits" in refused(InputOutputError, path)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    path = write_picture(tmp_path / "a.png", IMAGES[0])
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 5)

    refused(InputOutputError, path)


def test_missing_pillow_is_a_hint(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)

    with pytest.raises(UsageError) as caught:
        read(tmp_path)
    assert caught.value.hint == "pip install 'smtkit[images]'"


# Several inputs


def test_inputs_follow_one_another(tmp_path):
    first = write_idx(tmp_path / "images-idx3-ubyte.gz", IMAGES)
    second = write_npy(tmp_path / "images.npy", IMAGES[::-1])

    assert np.array_equal(read(first, second)[0], np.concatenate([IMAGES, IMAGES[::-1]]))


def test_inputs_of_other_sizes_are_refused(tmp_path):
    first = write_npy(tmp_path / "a.npy", IMAGES)
    second = write_npy(tmp_path / "b.npy", IMAGES[:, :2])

    message = refused(InputOutputError, first, second)
    assert "(2, 3)" in message
    assert "(4, 3)" in message
    assert read(first, second, size=(2, 2))[0].shape == (10, 2, 2)


def test_labels_are_in_all_inputs_or_in_none(tmp_path):
    first = write_npy(tmp_path / "a.npy", IMAGES)
    second = tmp_path / "b.npz"
    np.savez(second, images=IMAGES, labels=LABELS)

    assert str(second) in refused(UsageError, second, first)
    assert str(first) in refused(UsageError, first, second)


def test_label_names_are_the_same_in_all_inputs(tmp_path):
    for name in ("a/ant/1.png", "a/bee/1.png", "b/ant/1.png", "b/bee/1.png", "c/bee/1.png"):
        write_picture(tmp_path / name, IMAGES[0])

    assert read(tmp_path / "a", tmp_path / "b")[1].tolist() == [0, 1, 0, 1]
    assert str(tmp_path / "a") in refused(UsageError, tmp_path / "a", tmp_path / "c")


def test_no_inputs_are_refused():
    with pytest.raises(UsageError):
        open_images([], PixelConfig())


@pytest.mark.parametrize("name", ["missing.npy", "missing", "missing-idx3-ubyte.gz"])
def test_missing_path_is_refused(tmp_path, name):
    assert "no such file" in refused(UsageError, tmp_path / name)


@pytest.mark.parametrize("name", ["images.tiff", "images", "images.gz", "train.csv"])
def test_unknown_suffix_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(idx_bytes(IMAGES))

    assert ".npy" in refused(UsageError, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.png", "a-idx3-ubyte", "a-idx3-ubyte.gz"])
def test_unreadable_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    path.chmod(0)

    assert "Permission denied" in refused(InputOutputError, path)


# Levels


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


# Resampling


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
