"""Reading one picture: what is kept, what is converted, what is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ebbtide.domains.images.opening import detected
from ebbtide.domains.images.pictures import Picture, flattened, glance, read_header, read_picture
from ebbtide.shared.errors import InputError

Noise = Callable[..., np.ndarray]


def code_of(path: Path, **options: int) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.fault.code


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_eight_bits_come_back_bit_for_bit(tmp_path: Path, noise: Noise, suffix: str, channels: int) -> None:
    if (suffix, channels) in {("webp", 1), ("bmp", 4)}:
        pytest.skip("WebP has no grey, BMP no opacity")
    pixels, file = noise(9, 7, channels), tmp_path / f"a.{suffix}"
    Image.fromarray(pixels.squeeze()).save(file, lossless=True, exact=True)
    picture = read_picture(file)
    assert np.array_equal(picture.pixels, pixels) and picture.pixels.dtype == np.uint8
    assert picture.info["converted"] == "" and glance(file) == (9, 7, picture.mode, 8)


@pytest.mark.parametrize("channels, mode", [(1, "I;16"), (2, "LA;16"), (3, "RGB;16"), (4, "RGBA;16")])
def test_sixteen_bits_of_png_are_kept(
    tmp_path: Path, noise: Noise, deep_png: Callable[..., bytes], channels: int, mode: str
) -> None:
    pixels, file = noise(6, 11, channels, 16), tmp_path / "a.png"
    file.write_bytes(deep_png(pixels))
    picture = read_picture(file)
    assert picture.bits == 16 and np.array_equal(picture.pixels, pixels)
    assert picture.info["mode"] == mode and read_header(file).mode == mode
    assert glance(file) == (6, 11, picture.mode, 16)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_sixteen_bits_of_tiff_are_kept(
    tmp_path: Path, noise: Noise, deep_tiff: Callable[..., bytes], channels: int, order: str, deflate: bool
) -> None:
    pixels, file = noise(6, 11, channels, 16), tmp_path / "a.tif"
    file.write_bytes(deep_tiff(pixels, order, deflate))
    assert np.array_equal(read_picture(file).pixels, pixels)


def test_a_grey_tiff_of_sixteen_bits_and_one_of_thirty_two(tmp_path: Path, noise: Noise) -> None:
    pixels = noise(5, 6, 1, 16)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.tif")
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)
    Image.fromarray(pixels[..., 0].astype(np.int32)).save(tmp_path / "b.tif")
    assert np.array_equal(read_picture(tmp_path / "b.tif").pixels, pixels)
    Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(tmp_path / "c.tif")
    assert code_of(tmp_path / "c.tif") == "image-mode"
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "d.tif")
    assert code_of(tmp_path / "d.tif") == "image-mode"


def test_a_transparent_colour_becomes_opacity(tmp_path: Path, deep_png: Callable[..., bytes]) -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint16) * 300
    key = b"".join(int(v).to_bytes(2, "big") for v in pixels[0, 1])
    extra = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    (tmp_path / "a.png").write_bytes(deep_png(pixels, extra))
    picture = read_picture(tmp_path / "a.png")
    assert picture.pixels[0, :, 3].tolist() == [65535, 0] and np.array_equal(picture.pixels[..., :3], pixels)
    Image.fromarray(np.array([[5, 9]], np.uint8)).save(tmp_path / "b.png", transparency=9)
    assert read_picture(tmp_path / "b.png").pixels[0].tolist() == [[5, 255], [9, 0]]


def test_palette_cmyk_and_black_and_white_are_converted_and_told(tmp_path: Path, noise: Noise) -> None:
    colours = Image.fromarray(noise(8, 8)).quantize(8)
    colours.save(tmp_path / "p.png")
    picture = read_picture(tmp_path / "p.png")
    assert picture.info["converted"] == "palette" and picture.info["mode"] == "P"
    assert np.array_equal(picture.pixels, np.asarray(colours.convert("RGB")))
    greys = Image.fromarray(noise(8, 8, 1)[..., 0]).convert("P")
    greys.save(tmp_path / "g.png")
    assert read_picture(tmp_path / "g.png").mode == "L"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    picture = read_picture(tmp_path / "c.jpg")
    assert (picture.mode, picture.info["converted"]) == ("RGB", "CMYK")
    assert (
        picture.pixels[4, 4, 0] > 250 and picture.pixels[4, 4, 1] < 5
    )  # no cyan, all magenta and yellow: red
    Image.fromarray(noise(8, 8, 1)[..., 0] > 127).save(tmp_path / "w.png")
    assert set(np.unique(read_picture(tmp_path / "w.png").pixels)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, noise: Noise, orientation: int) -> None:
    file, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(5, 8)).save(file, exif=exif)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    picture = read_picture(file)
    assert np.array_equal(picture.pixels, expected) and picture.info["turned"] == (orientation > 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path: Path, noise: Noise, suffix: str, kept: float) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(64, 64)).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: max(8, int(len(whole) * kept))])
    assert code_of(file) == "image-damaged"


def test_a_flipped_bit_of_png_is_seen(tmp_path: Path, noise: Noise) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(noise(32, 32)).save(file)
    whole, rng = file.read_bytes(), np.random.default_rng(2)
    for _ in range(60):
        changed = bytearray(whole)
        changed[int(rng.integers(8, len(whole)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        assert code_of(file) in {"image-damaged", "image-too-large", "image-not-image"}


@pytest.mark.parametrize(
    "content, found",
    [
        (b"hello", "plain text"),
        (b"GIF89a...", "a GIF image"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0\1\2", "unknown bytes"),
    ],
)
def test_what_is_not_a_picture_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert detected(tmp_path / "a.png") == found and code_of(tmp_path / "a.png") == "image-not-image"


def test_empty_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert code_of(tmp_path / "a.png") == "image-empty"
    assert code_of(tmp_path / "b.png") == "image-missing" and code_of(tmp_path) == "image-missing"


def test_a_wrong_suffix_is_no_fault(tmp_path: Path, noise: Noise) -> None:
    Image.fromarray(noise(4, 4)).save(tmp_path / "a.jpg", format="PNG")
    assert read_picture(tmp_path / "a.jpg").info["format"] == "PNG"


def test_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    )
    cap = Image.MAX_IMAGE_PIXELS
    assert code_of(file) == "image-too-large"
    assert read_header(file).width == 20_000 and cap == Image.MAX_IMAGE_PIXELS
    Image.new("L", (30, 20)).save(file)
    assert code_of(file, pixel_limit=599) == "image-too-large"
    assert read_picture(file, pixel_limit=600).size == (20, 30)


def test_opacity_is_kept_or_laid_on_a_background(tmp_path: Path) -> None:
    pixels = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [100, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png").pixels, pixels)
    laid = read_picture(tmp_path / "a.png", alpha="composite")
    assert laid.pixels[0].tolist() == [[100, 0, 0], [255, 255, 255], [224, 204, 204]] and laid.mode == "RGB"
    deep = Picture(np.array([[[1000, 0]]], np.uint16), "LA")
    assert flattened(deep, 0).pixels.tolist() == [[[0]]] and flattened(deep).pixels.tolist() == [[[65535]]]
