"""Models made to do harm: each is refused with one line, runs nothing, and writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ebbtide.shared.artifacts import CONFIG, MANIFEST, WEIGHTS, read_model, write_model
from ebbtide.shared.errors import InputError

Attack = Callable[[Path], Path | None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Each takes an honest model folder and spoils it; it may return another path to be read instead."""
    ATTACKS[function.__name__] = function
    return function


class Payload:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


def bomb(folder: Path) -> bytes:
    return pickle.dumps(Payload(folder.parent / "executed"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def listed(folder: Path, name: str, data: bytes) -> None:
    """The manifest names a member of these bytes."""
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda manifest: manifest["members"].update({name: facts}))


def vouch(folder: Path, name: str, data: bytes) -> None:
    """Put a member in place with a manifest that agrees: only its content is bad."""
    (folder / name).write_bytes(data)
    listed(folder, name, data)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- code ---------------------------------------------------------------------------------------


@attack
def pickled_model(folder: Path) -> Path:
    path = folder.parent / "model.pt"
    path.write_bytes(bomb(folder))
    return path


@attack
def torch_checkpoint(folder: Path) -> Path:
    path = folder.parent / "model.ckpt"
    torch.save({"state_dict": Payload(folder.parent / "executed")}, path)
    return path


@attack
def pickle_named_weights(folder: Path) -> None:
    vouch(folder, WEIGHTS, bomb(folder))


@attack
def pickle_named_config(folder: Path) -> None:
    vouch(folder, CONFIG, bomb(folder))


@attack
def pickle_named_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(bomb(folder))


@attack
def pickle_beside_the_weights(folder: Path) -> None:
    (folder / "weights.pkl").write_bytes(bomb(folder))


@attack
def pickle_in_the_manifest(folder: Path) -> None:
    vouch(folder, "weights.pkl", bomb(folder))


@attack
def module_in_the_manifest(folder: Path) -> None:
    vouch(folder, "modeling.py", b"open('executed', 'w')")


# --- archives -----------------------------------------------------------------------------------


@attack
def zip_with_dots(folder: Path) -> Path:
    path = folder.parent / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member in folder.iterdir():
            archive.write(member, member.name)
        archive.writestr("../executed", "evil")
        archive.writestr("/tmp/executed", "evil")
    return path


@attack
def zip_bomb(folder: Path) -> Path:
    path = folder.parent / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(WEIGHTS, b"\0" * 20_000_000)
    return path


@attack
def zip_named_weights(folder: Path) -> None:
    vouch(folder, WEIGHTS, zip_with_dots(folder).read_bytes())


# --- paths --------------------------------------------------------------------------------------


@attack
def dots_in_a_name(folder: Path) -> None:
    (folder.parent / "evil.json").write_bytes(b"evil")
    listed(folder, "../evil.json", b"evil")


@attack
def absolute_path(folder: Path) -> None:
    (folder.parent / "evil.json").write_bytes(b"evil")
    listed(folder, str(folder.parent / "evil.json"), b"evil")


@attack
def windows_path(folder: Path) -> None:
    vouch(folder, "C:\\evil.json", b"evil")


@attack
def name_with_a_line_break(folder: Path) -> None:
    vouch(folder, "evil\n\x1b[2J.json", b"evil")


@attack
def unlisted_name_with_a_line_break(folder: Path) -> None:
    (folder / "evil\n\x1b[2J.json").write_bytes(b"evil")


@attack
def path_below(folder: Path) -> None:
    (folder / "sub").mkdir()
    vouch(folder, "sub/evil.json", b"evil")


@attack
def folder_as_member(folder: Path) -> None:
    listed(folder, "evil.json", b"evil")
    (folder / "evil.json").mkdir()


def _linked(folder: Path, name: str) -> None:
    os.rename(folder / name, folder.parent / name)
    os.symlink(folder.parent / name, folder / name)


@attack
def linked_weights(folder: Path) -> None:
    _linked(folder, WEIGHTS)


@attack
def linked_config(folder: Path) -> None:
    _linked(folder, CONFIG)


@attack
def linked_manifest(folder: Path) -> None:
    _linked(folder, MANIFEST)


@attack
def dangling_link(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.symlink("/nowhere", folder / WEIGHTS)


@attack
def link_to_a_device(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.symlink("/dev/zero", folder / MANIFEST)


@attack
def pipe_that_never_answers(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


# --- size ---------------------------------------------------------------------------------------


@attack
def terabyte_of_nothing(folder: Path) -> None:
    with open(folder / WEIGHTS, "wb") as file:
        file.truncate(2**40)
    edit(folder, lambda manifest: manifest["members"][WEIGHTS].update(size=2**40))


@attack
def terabyte_made_up_for_by_a_negative_size(folder: Path) -> None:
    terabyte_of_nothing(folder)
    listed(folder, "evil.json", b"evil")
    edit(folder, lambda manifest: manifest["members"]["evil.json"].update(size=-(2**40)))


@attack
def gigabyte_manifest(folder: Path) -> None:
    with open(folder / MANIFEST, "wb") as file:
        file.truncate(2**30)


@attack
def nested_json(folder: Path) -> None:
    vouch(folder, CONFIG, b"[" * 200_000)


@attack
def endless_number(folder: Path) -> None:
    vouch(folder, CONFIG, b'{"x": ' + b"9" * 100_000 + b"}")


@attack
def huge_safetensors_header(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors(b"{}", length=2**63 - 1))


@attack
def header_longer_than_the_file(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors(b"{}", length=1000))


@attack
def empty_weights(folder: Path) -> None:
    vouch(folder, WEIGHTS, b"")


# --- tensors ------------------------------------------------------------------------------------


@attack
def offsets_out_of_the_file(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors({"w": tensor([1000], [0, 4000])}, b"\0" * 4))


@attack
def overlapping_tensors(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, b"\0" * 12))


@attack
def shape_that_overflows(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors({"w": tensor([2**62, 2**62, 0], [0, 0])}, b"\0" * 4))


@attack
def shape_larger_than_its_bytes(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors({"w": tensor([2**20], [0, 4])}, b"\0" * 4))


@attack
def unknown_dtype(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors({"w": tensor([1], [0, 4], "PICKLE")}, b"\0" * 4))


@attack
def nan_weights(folder: Path) -> None:
    vouch(folder, WEIGHTS, safetensors({"w\x1b[2J\n": tensor([1], [0, 4])}, b"\xff\xff\xff\x7f"))


# --- integrity and version ----------------------------------------------------------------------


@attack
def one_bit_flipped(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


@attack
def truncated_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


@attack
def missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@attack
def weights_not_in_the_manifest(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["members"].pop(WEIGHTS))


@attack
def no_checksum(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["members"][WEIGHTS].pop("sha256"))


@attack
def future_version(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(version=2, tool="9.9\n\x1b[2J evil"))


@attack
def version_that_is_no_number(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(version=True))


@attack
def another_kind_of_folder(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(format="ebbtide-checkpoint"))


@attack
def manifest_that_is_a_list(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1, 2]")


@attack
def manifest_with_odd_members(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["members"].update({WEIGHTS: "yes"}))


@attack
def config_that_is_a_list(folder: Path) -> None:
    vouch(folder, CONFIG, b"[]")


@attack
def config_with_nan(folder: Path) -> None:
    vouch(folder, CONFIG, b'{"scale": NaN}')


@attack
def config_that_is_not_text(folder: Path) -> None:
    vouch(folder, CONFIG, b"\xff\xfe\x00{}")


@attack
def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@attack
def nothing_there(folder: Path) -> Path:
    return folder.parent / "elsewhere"


# --- each is refused ----------------------------------------------------------------------------


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", {"name": "honest"}, {"w": torch.arange(4.0)})
    return tmp_path / "model"


def test_the_honest_model_is_read(honest: Path) -> None:
    (honest / ".DS_Store").write_bytes(b"left by a file manager")
    config, tensors = read_model(honest)
    assert config == {"name": "honest"}
    assert torch.equal(tensors["w"], torch.arange(4.0))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_refused_in_one_line(honest: Path, name: str) -> None:
    if name == "pipe_that_never_answers" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in folders here")
    path = ATTACKS[name](honest) or honest
    before = sorted(honest.parent.rglob("*"))
    with pytest.raises(InputError) as refused:
        read_model(path)
    line = str(refused.value)
    assert refused.value.fault.code in {"model-refused", "model-version", "model-missing", "not-a-model"}
    assert line.isprintable()  # one line, and no control characters that redraw a terminal
    assert len(line) < 400
    assert refused.value.exit_code == 2
    assert sorted(honest.parent.rglob("*")) == before  # nothing ran, nothing was written
    assert not Path("executed").exists()
    assert not Path("/tmp/executed").exists()


def test_the_payload_is_real(honest: Path) -> None:
    """That nothing ran would mean nothing if the pickle were harmless."""
    pickle.loads(bomb(honest)).close()
    assert (honest.parent / "executed").exists()


def test_the_version_is_told_with_a_remedy(honest: Path) -> None:
    future_version(honest)
    with pytest.raises(
        InputError, match=r"model-version: .*format '2', of ebbtide 9\.9.*install the ebbtide"
    ):
        read_model(honest)


def test_a_limit_can_be_set(honest: Path) -> None:
    with pytest.raises(InputError, match="larger than"):
        read_model(honest, limit=100)
