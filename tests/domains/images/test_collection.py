"""Laying out folders, tables, arrays and torchvision's data sets."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ebbtide.domains.images import sources
from ebbtide.domains.images.collection import collect, looks_like_pictures
from ebbtide.shared.errors import InputError

Noise = Callable[..., np.ndarray]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.fault.code


@pytest.fixture
def flat(tmp_path: Path, noise: Noise) -> Path:
    (tmp_path / "flat").mkdir()
    for name in ("b.png", "a.png", "c.png"):
        Image.fromarray(noise(6, 5)).save(tmp_path / "flat" / name)
    return tmp_path / "flat"


def test_a_folder_of_classes(shapes: Path) -> None:
    (shapes / ".hidden.png").touch()
    (shapes / "notes.txt").write_text("hello")
    found = collect(shapes)
    assert found.kind == "classes" and found.class_names == ("disc", "square") and len(found) == 24
    assert list(found.names) == sorted(found.names) and found.names[0] == "disc/00.png"
    assert found.labels.tolist() == [0] * 12 + [1] * 12 and found.read(13).mode == "L"
    assert [fault.code for fault in found.faults] == ["image-other-files"]
    assert looks_like_pictures(shapes) and not looks_like_pictures(shapes / "notes.txt")


def test_loose_pictures_beside_classes_have_none(shapes: Path) -> None:
    (shapes / "disc" / "00.png").rename(shapes / "loose.png")
    found = collect(shapes)
    assert found.labels[found.names.index("loose.png")] == -1 and found.class_names == ("disc", "square")
    assert [fault.code for fault in found.faults] == ["image-no-class"]


def test_a_plain_folder_and_a_single_picture(flat: Path) -> None:
    found = collect(flat)
    assert (found.kind, found.names, found.class_names) == ("folder", ("a.png", "b.png", "c.png"), ())
    one = collect(flat / "b.png")
    assert (one.kind, one.names) == ("file", ("b.png",)) and one.read(0).size == (6, 5)
    assert found.covariates.shape == (3, 0) and found.captions == ()


def test_a_table_tells_class_numbers_and_captions(flat: Path) -> None:
    (flat / "metadata.csv").write_text(
        "\ufefffile_name,label,age,caption,place\n"
        'a.png,NA,30.5,"a cat, sitting",here\n'
        "c.png,dog,,a dog,there\n"
        "gone.png,dog,1,nothing,there\n",
        encoding="utf-8",
    )
    found = collect(flat)
    assert found.kind == "metadata" and found.class_names == ("NA", "dog")
    assert found.labels.tolist() == [0, -1, 1] and found.covariate_names == ("age",)
    np.testing.assert_array_equal(found.covariates, [[30.5], [np.nan], [np.nan]])
    assert found.captions == ("a cat, sitting", None, "a dog")
    said = {fault.code: fault for fault in found.faults}
    assert set(said) == {"metadata-row-without-file", "metadata-file-without-row", "metadata-column-unused"}
    assert "row 4" in said["metadata-row-without-file"].where
    assert collect(flat, labels="place").class_names == ("here", "there")
    assert code_of(lambda: collect(flat, labels="plaec")) == "metadata-no-column"


@pytest.mark.parametrize(
    "text, code",
    [
        ("name,label\na.png,x\n", "metadata-no-file-name"),
        ("file_name,label\na.png\n", "metadata-row-length"),
        ("file_name,label,label\na.png,1,2\n", "metadata-columns"),
        ("file_name,label\na.png,1\na.png,2\n", "metadata-repeated"),
        ("file_name,label\n../a.png,1\n", "metadata-outside"),
        ("file_name,label\n,1\n", "metadata-no-file"),
        ("file_name,label\nz.png,1\n", "metadata-no-match"),
        ('file_name,label\na.png,"x\n', "metadata-damaged"),
    ],
)
def test_a_damaged_table_is_named_with_its_row(flat: Path, text: str, code: str) -> None:
    (flat / "metadata.csv").write_text(text)
    assert code_of(lambda: collect(flat)) == code


def test_whole_number_classes_sort_as_numbers(flat: Path) -> None:
    (flat / "metadata.csv").write_text("file_name;label\na.png;10\nb.png;9\nc.png;9\n")
    assert collect(flat).class_names == ("9", "10")


def test_arrays_as_fashion_mnist_has_them(tmp_path: Path) -> None:
    images, target = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    np.savez(
        tmp_path / "d.npz",
        x_train=images[:900],
        y_train=target[:900],
        x_test=images[900:],
        y_test=target[900:],
    )
    train, test = collect(tmp_path / "d.npz"), collect(tmp_path / "d.npz", part="test")
    assert (len(train), len(test)) == (900, 897) and train.class_names == tuple("0123456789")
    assert np.array_equal(train.read(5).pixels[..., 0], images[5]) and train.read(5).pixels.dtype == np.uint8
    assert train.labels[:50].tolist() == target[:50].tolist() and train.faults[0].code == "image-arrays-type"


def test_arrays_with_names_and_channels_first(tmp_path: Path, noise: Noise) -> None:
    pixels = noise(7, 2 * 3 * 9, 1, 16).reshape(7, 3, 2, 9)[:, :, :, :]
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1, 1, 0, 0, 1, -1], class_names=["cat", "dog"])
    found = collect(tmp_path / "a.npz")
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 1, 1, 0, 0, 1, -1]
    assert np.array_equal(found.read(3).pixels, pixels[3].transpose(1, 2, 0))


def test_arrays_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.npz"

    def refused(**arrays: object) -> str:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return code_of(lambda: collect(file))

    assert refused(pictures=np.zeros((2, 3, 3), np.uint8)) == "image-arrays-missing"
    assert refused(images=np.zeros((2, 3), np.uint8)) == "image-arrays-shape"
    assert refused(images=np.full((2, 3, 3), 0.5)) == "image-arrays-range"
    assert refused(images=np.full((2, 3, 3), None)) == "image-arrays-objects"
    assert refused(images=np.zeros((2, 3, 3), np.uint8), labels=[1]) == "image-arrays-labels"
    np.savez(file, images=np.zeros((2, 3, 3), np.uint8))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert code_of(lambda: collect(file)) == "image-arrays-damaged"
    header = io.BytesIO()  # a bomb: the header alone asks for an exabyte
    np.lib.format.write_array_header_1_0(
        header, {"shape": (10**12, 1000, 1000), "fortran_order": False, "descr": "|u1"}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    assert code_of(lambda: collect(file)) == "image-arrays-too-large"


def idx(array: np.ndarray) -> bytes:
    """The file format of MNIST and its kin."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_torchvision_from_a_local_root(tmp_path: Path, noise: Noise) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, target = noise(7 * 28, 28, 1).reshape(7, 28, 28), np.arange(7, dtype=np.uint8)
    for part, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels[rows]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(target[rows]))
    found = collect(f"torchvision:FashionMNIST:{tmp_path}")
    assert len(found) == 5 and found.class_names[3] == "Dress" and found.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(found.read(4).pixels[..., 0], pixels[4])
    test = collect("torchvision:FashionMNIST", root=tmp_path, part="test")
    assert np.array_equal(test.read(0).pixels[..., 0], pixels[5]) and test.names == ("00000", "00001")


def test_torchvision_errors(tmp_path: Path) -> None:
    assert code_of(lambda: collect("torchvision:FashionMNIST")) == "image-torchvision-root"
    assert code_of(lambda: collect(f"torchvision:FashionMNIST:{tmp_path}")) == "image-torchvision-data"
    with pytest.raises(InputError, match="did you mean FashionMNIST"):
        sources.read_torchvision("torchvision:FashonMNIST", tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    assert code_of(lambda: collect(tmp_path)) == "image-none"
    assert code_of(lambda: collect(tmp_path / "no")) == "image-missing"


def test_subset_split_and_digest(shapes: Path) -> None:
    found = collect(shapes)
    train, held = found.split(0.25, seed=3)
    assert len(held) == 6 and sorted(train.names + held.names) == list(found.names)
    again = found.subset([3, 20])
    assert again.names == (found.names[3], found.names[20]) and again.labels.tolist() == [0, 1]
    assert np.array_equal(again.read(1).pixels, found.read(20).pixels)
    before = found.digest()
    assert before == collect(shapes).digest() and before != again.digest()
    (shapes / "disc" / "00.png").rename(shapes / "square" / "zz.png")
    assert collect(shapes).digest() != before
