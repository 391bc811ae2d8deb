"""Image files: each format against the array it was written from, labels, and damage."""

import contextlib
import gzip
import io
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

from image_files import (
    IMAGES,
    LABELS,
    idx_bytes,
    read,
    refused,
    write_idx,
    write_npy,
    write_picture,
)
from smtkit.config import PixelConfig
from smtkit.corpus.images import ImageSet
from smtkit.errors import InputOutputError, UsageError


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
    images = ImageSet([str(path)], PixelConfig())

    for _ in range(2):
        blocks = list(images.blocks())
        assert [len(block.pixels) for block in blocks] == [1024, 1024, 452]
        assert np.array_equal(np.concatenate([block.pixels for block in blocks]), values)
        assert np.concatenate([block.labels for block in blocks]).tolist() == [
            number % 7 for number in range(2500)
        ]


def test_blocks_of_large_images_have_fewer(tmp_path):
    path = write_npy(tmp_path / "large.npy", np.zeros((3, 1000, 1000), np.uint8))

    whole = ImageSet([str(path)], PixelConfig()).blocks()
    small = ImageSet([str(path)], PixelConfig(size=(10, 10))).blocks()

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
    images = ImageSet([str(tmp_path)], PixelConfig())
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
        ImageSet([], PixelConfig())


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
