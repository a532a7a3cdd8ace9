"""Every fault of a set of pictures is found at once."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebbtide.domains.images.checking import check
from ebbtide.shared.errors import Fault

Noise = Callable[..., np.ndarray]


def by_code(faults: list[Fault]) -> dict[str, Fault]:
    assert all("\n" not in str(fault) for fault in faults)
    severities = [fault.severity for fault in faults]
    assert severities == sorted(severities)  # errors before warnings
    return {fault.code: fault for fault in faults}


def test_a_sound_set_has_only_the_warning_that_it_is_small(shapes: Path) -> None:
    assert [fault.code for fault in check(shapes)] == ["image-few"]


def test_a_sound_set_of_enough_pictures_has_no_fault(tmp_path: Path, noise: Noise) -> None:
    np.savez(tmp_path / "a.npz", images=noise(120 * 8, 8, 1).reshape(120, 8, 8), labels=np.arange(120) % 3)
    assert check(tmp_path / "a.npz") == []


def test_every_damaged_file_is_named_and_the_rest_is_still_looked_at(shapes: Path, noise: Noise) -> None:
    whole = (shapes / "disc" / "00.png").read_bytes()
    (shapes / "disc" / "00.png").write_bytes(whole[: len(whole) // 2])
    (shapes / "disc" / "01.png").write_bytes(b"")
    (shapes / "square" / "02.png").write_text("hello")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (shapes / "square" / "03.png").write_bytes(bomb + b"\0\0\0\0IDAT\x35\xaf\x06\x1e")
    (shapes / "square" / "05.png").write_bytes((shapes / "disc" / "05.png").read_bytes())
    found = by_code(check(shapes))
    assert found["image-damaged"].where.endswith("disc/00.png")
    assert {"image-empty", "image-not-image", "image-too-large", "image-copies-classes"} <= set(found)
    assert sum(fault.severity == "error" for fault in found.values()) == 4
    assert "disc/05.png = square/05.png" in found["image-copies"].remedy


def test_kinds_sizes_and_depths_are_counted(tmp_path: Path, noise: Noise) -> None:
    for k in range(6):
        Image.fromarray(noise(20, 20)).save(tmp_path / f"{k}.png")
    Image.fromarray(noise(4, 8)).save(tmp_path / "tiny.png")
    Image.fromarray(noise(100, 90)).save(tmp_path / "huge.png")
    Image.fromarray(noise(12, 20)).save(tmp_path / "smaller.png")
    Image.fromarray(noise(20, 20)).quantize(8).save(tmp_path / "palette.png")
    Image.fromarray(noise(20, 20, 1, 16)[..., 0]).save(tmp_path / "deep.png")
    Image.new("CMYK", (20, 20), (9, 9, 9, 9)).save(tmp_path / "print.jpg")
    Image.fromarray(noise(20, 20)).save(tmp_path / "wrong.jpg", format="PNG")
    Image.new("L", (20, 20)).save(
        tmp_path / "two.tif", save_all=True, append_images=[Image.new("L", (20, 20), 9)]
    )
    found = by_code(check(tmp_path))
    assert set(found) == {
        "image-modes",
        "image-depth-mixed",
        "image-converted",
        "image-frames",
        "image-suffix",
        "image-blank",
        "image-sizes",
        "image-tiny",
        "image-huge",
        "image-few",
    }
    assert "12 RGB, 2 L" in found["image-modes"].what and "deep.png" in found["image-depth-mixed"].remedy
    assert "1 CMYK, 1 palette" in found["image-converted"].what
    assert found["image-tiny"].remedy.endswith(": tiny.png")
    assert found["image-huge"].remedy.endswith(": huge.png")
    assert "wrong.jpg" in found["image-suffix"].remedy and "4 sizes" in found["image-sizes"].what
    assert "print.jpg, two.tif" in found["image-blank"].remedy


@pytest.mark.parametrize("text", ["file_name,label\n00.png\n", "name\nx\n"])
def test_a_damaged_table_hides_no_damaged_picture(tmp_path: Path, noise: Noise, text: str) -> None:
    Image.fromarray(noise(6, 6)).save(tmp_path / "00.png")
    (tmp_path / "01.png").touch()
    (tmp_path / "metadata.csv").write_text(text)
    codes = [fault.code for fault in check(tmp_path)]
    assert codes[0].startswith("metadata-") and "image-empty" in codes


def test_classes_of_few_pictures_and_of_very_different_numbers(tmp_path: Path, noise: Noise) -> None:
    labels = np.array([0] * 150 + [1] * 3 + [2] * 12)
    np.savez(tmp_path / "a.npz", images=noise(165 * 6, 6, 1).reshape(165, 6, 6), labels=labels)
    found = by_code(check(tmp_path / "a.npz"))
    assert "'1' (3)" in found["image-class-few"].remedy and "150" in found["image-class-imbalance"].what


def test_nothing_there_is_one_fault(tmp_path: Path) -> None:
    assert [fault.code for fault in check(tmp_path / "no")] == ["image-missing"]
    assert [fault.code for fault in check(tmp_path)] == ["image-none"]


def test_many_damaged_files_are_counted(tmp_path: Path) -> None:
    for k in range(60):
        (tmp_path / f"{k:02d}.png").touch()
    faults = [fault for fault in check(tmp_path) if fault.code == "image-empty"]
    assert len(faults) == 51 and "10 more" in faults[-1].what
