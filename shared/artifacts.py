"""The model folder: safetensors, JSON and a manifest; nothing that runs.

A folder holds `config.json`, `weights.safetensors`, perhaps pictures and notes, and `manifest.json` with the
size and sha256 of every one. It is built as `NAME.partial`, read back, and renamed when whole. Reading
trusts nothing: a member that the manifest does not name, a link, a path out of the folder, a wrong
checksum, a NaN in the weights, or another format version is refused with one sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import EbbtideError, InputError
from .files import (
    explained,
    flush_to_disk,
    locked,
    partial_of,
    refuse_existing,
    remove,
    replace_atomically,
    require_space,
    write_bytes,
)

__all__ = [
    "locked",
    "read_model",
    "replace_atomically",
    "require_space",
    "write_model",
]

FORMAT = 1
CONFIG, WEIGHTS, MANIFEST = "config.json", "weights.safetensors", "manifest.json"
MAX_JSON = 256 * 2**20  # bytes; a codec with a million levels fits
MAX_HEADER = 64 * 2**20  # bytes of a safetensors header
MAX_MODEL = 16 * 2**30  # bytes; read_model(..., limit=) raises it
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}\.(json|safetensors|png|md|csv|txt|yaml|html)")
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # left by file managers, never read


# --- writing ------------------------------------------------------------------------------------


def tool_version() -> str:
    """The installed version of ebbtide, or "unknown" in a bare checkout."""
    try:
        return version_of("ebbtide")
    except PackageNotFoundError:
        return "unknown"


def json_bytes(config: Mapping[str, Any], where: str) -> bytes:
    try:
        return json.dumps(config, allow_nan=False, ensure_ascii=False, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise EbbtideError("not-json", f"the configuration is not plain JSON: {error}", where) from error


def _has_nan(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isnan().any())  # float8 has no isnan


def tensor_bytes(tensors: Mapping[str, Tensor], where: str) -> bytes:
    """The safetensors file, from copies on the CPU that share no memory (tied weights are written twice)."""
    from safetensors.torch import save

    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        if _has_nan(flat):
            raise EbbtideError(
                "weights-nan", f"tensor {name} has NaN; it is not saved", where, "train it again"
            )
        storage = flat.untyped_storage()
        # safetensors refuses tensors that share memory: views of one storage, tied weights.
        shares = storage.data_ptr() in seen or storage.nbytes() != flat.nbytes
        seen.add(storage.data_ptr())
        held[name] = flat.clone() if shares else flat
    data: bytes = save(held)
    return data


def _manifest(kind: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(members.items())
    }
    return {"format": f"ebbtide-{kind}", "version": FORMAT, "tool": tool_version(), "members": listed}


def build_folder(partial: Path, kind: str, members: Mapping[str, bytes]) -> None:
    """Write a whole folder at `partial`, the manifest last, and read it back."""
    remove(partial)
    partial.mkdir(parents=True)
    manifest = _manifest(kind, members)
    for name, data in members.items():
        write_bytes(partial / name, data)
    write_bytes(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
    flush_to_disk(partial)
    # What the disk kept is compared with what memory held: silent write errors end here.
    if _checked(partial, kind, sys.maxsize) != manifest["members"]:
        raise EbbtideError("save-failed", "the disk kept other bytes", str(partial), "check the disk")


def put_folder(folder: Path, kind: str, members: Mapping[str, bytes]) -> None:
    """Write a whole folder and give it its name. Whatever goes wrong on the way, no half of it stays
    behind, and what `folder` held before remains."""
    partial = partial_of(folder)
    try:
        build_folder(partial, kind, members)
        swap_in(partial, folder)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def swap_in(partial: Path, folder: Path) -> None:
    """Give a whole folder its name. The one it replaces is `FOLDER.old` in between, where `read_model`
    finds it should the power go in that instant."""
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        remove(old)
        os.rename(folder, old)
    os.rename(partial, folder)
    flush_to_disk(folder.parent)
    remove(old)


def recovered(folder: Path) -> Path:
    """`folder`, or the version of it that an interrupted overwriting left under `FOLDER.old`."""
    old = folder.with_name(folder.name + ".old")
    return old if not folder.exists() and (old / MANIFEST).is_file() else folder


def write_model(
    folder: Path | str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool = False,
    extras: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        folder: where; its parents are made.
        config: plain JSON (no NaN, no infinity).
        tensors: what safetensors holds; on any device; NaN is refused.
        overwrite: replace a model folder that is there. What is not a model folder is never replaced.
        extras: other files to keep beside the weights (`progress.png`, `card.md`), in the manifest too.

    Raises:
        InputError: `output-exists`, `not-a-model`, `read-only`, `folder-locked`.
        EbbtideError: `disk-full`, `not-json`, `weights-nan`, `save-failed`.
    """
    folder = Path(folder)
    extra = {name: bytes(data) for name, data in (extras or {}).items()}
    for name in extra:
        if not _NAME.fullmatch(name) or name in (CONFIG, WEIGHTS, MANIFEST):
            raise ValueError(f"extras: {name!r} cannot be a member of a model folder")
    members = {
        CONFIG: json_bytes(config, str(folder)),
        WEIGHTS: tensor_bytes(tensors, str(folder)),
        **extra,
    }
    require_space(folder.parent, sum(map(len, members.values())) + 2**20)
    with locked(folder), explained(folder):
        if (found := recovered(folder)) != folder:
            os.rename(found, folder)
        refuse_existing(folder, overwrite)
        if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise InputError(
                "not-a-model",
                "what is here is not a model and is left alone",
                str(folder),
                "choose another one",
            )
        put_folder(folder, "model", members)


# --- reading ------------------------------------------------------------------------------------


def _refused(what: str, where: Path, remedy: str = "get the model again from its source") -> InputError:
    return InputError("model-refused", what, str(where), remedy)


def _plain_file(path: Path, limit: int) -> int:
    """The size of a regular file; a link, a device, a folder or too large a file is refused."""
    try:
        found = path.lstat()
    except OSError:
        raise _refused(f"{path.name} is missing", path.parent) from None
    if stat.S_ISLNK(found.st_mode):
        raise _refused(f"{path.name} is a link; members must be plain files", path.parent)
    if not stat.S_ISREG(found.st_mode):
        raise _refused(f"{path.name} is not a plain file", path.parent)
    if found.st_size > limit:
        raise _refused(f"{path.name} is larger than the {limit:,} bytes allowed", path.parent)
    return found.st_size


def _open_plain(path: Path) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))


def _digest(path: Path) -> str:
    with os.fdopen(_open_plain(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(path: Path, limit: int) -> bytes:
    _plain_file(path, limit)
    with os.fdopen(_open_plain(path), "rb") as file:
        return file.read()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_bytes(path, MAX_JSON), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refused(f"{path.name} is not JSON that can be read", path.parent) from error


def _listed(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The manifest's members, after its form and version were checked."""
    manifest = _parsed(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != f"ebbtide-{kind}":
        raise _refused(f"{MANIFEST} does not say ebbtide-{kind}", folder)
    version = manifest.get("version")
    if version != FORMAT or isinstance(version, bool):
        tool = re.sub(r"[^\w.+-]", "", str(manifest.get("tool")))[:30]
        raise InputError(
            "model-version",
            f"it has format {str(version)[:12]!r}, of ebbtide {tool}; this one reads format {FORMAT}",
            str(folder),
            "install the ebbtide that wrote it, or write the model again",
        )
    members = manifest.get("members")
    if not isinstance(members, dict) or not {CONFIG, WEIGHTS} <= members.keys():
        raise _refused(f"{MANIFEST} does not list {CONFIG} and {WEIGHTS}", folder)
    for name, facts in members.items():
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise _refused(f"{MANIFEST} names a member that is not a plain file name", folder)
        if not isinstance(facts, dict) or not isinstance(facts.get("size"), int) or facts["size"] < 0:
            raise _refused(f"{MANIFEST} gives no size for {name}", folder)
    return members


def _checked(folder: Path, kind: str, limit: int) -> dict[str, dict[str, Any]]:
    """Every member against the manifest: the set of names, plain files, sizes, checksums."""
    members = _listed(folder, kind)
    unknown = sorted({entry.name for entry in os.scandir(folder)} - members.keys() - {MANIFEST} - _LITTER)
    if unknown:
        raise _refused(f"{len(unknown)} file(s) here are not in {MANIFEST}", folder)
    if sum(facts["size"] for facts in members.values()) > limit:
        raise _refused(f"it says it is larger than the {limit:,} bytes allowed", folder)
    for name, facts in members.items():
        if _plain_file(folder / name, limit) != facts["size"]:
            raise _refused(f"{name} has another size than {MANIFEST} says: the copy is damaged", folder)
    for name, facts in members.items():
        if _digest(folder / name) != facts.get("sha256"):
            raise _refused(f"{name} has another sha256 than {MANIFEST} says: damaged or changed", folder)
    return members


def _tensors(path: Path, limit: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = _bytes(path, limit)
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(MAX_HEADER, len(data) - 8):
        raise _refused(f"{path.name} is not a safetensors file (impossible header length)", path.parent)
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _refused(f"{path.name} is not a whole safetensors file", path.parent) from error
    for name, tensor in tensors.items():
        if _has_nan(tensor):
            shown = re.sub(r"[^\w.-]", "", name)[:60]
            raise _refused(f"tensor {shown} in {path.name} has NaN", path.parent, "train the model again")
    return tensors


def read_folder(folder: Path, kind: str, limit: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _checked(folder, kind, limit)
    config = _parsed(folder / CONFIG)
    if not isinstance(config, dict):
        raise _refused(f"{CONFIG} does not hold an object", folder)
    return config, _tensors(folder / WEIGHTS, limit)


def read_model_of(form: str, folder: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`read_model`, of a model whose configuration says that its format is `form`.

    Raises:
        InputError: `model-format`; and as `read_model`.
    """
    config, tensors = read_model(folder)
    if config.get("format") != form:
        held = config.get("format", "something else")
        what = f"the folder holds {held!r}, this version reads {form!r}"
        raise InputError("model-format", what, str(folder), "train again with this version")
    return config, tensors


def model_config(folder: Path | str) -> dict[str, Any]:
    """The configuration of a model folder alone; whoever uses the model reads and checks all of it.

    Raises:
        InputError: `not-a-model`, `model-refused`.
    """
    folder = recovered(Path(folder))
    if not os.path.lexists(folder / MANIFEST):
        raise InputError("not-a-model", f"this folder has no {MANIFEST}", str(folder), "check the path")
    config = _parsed(folder / CONFIG)
    if not isinstance(config, dict):
        raise _refused(f"{CONFIG} does not hold an object", folder)
    return config


def read_model(folder: Path | str, *, limit: int = MAX_MODEL) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder after checking all of it.

    Args:
        folder: written by `write_model`.
        limit: bytes that the folder may have at most.

    Returns:
        The configuration and the tensors (on the CPU).

    Raises:
        InputError: `model-missing`, `model-refused` or `model-version`.
    """
    folder = recovered(Path(folder))
    if not folder.exists():
        raise InputError("model-missing", "there is no model here", str(folder), "check the path")
    if not folder.is_dir():
        raise _refused(
            "a model is a folder, and this is a file; archives and pickles are not opened",
            folder,
            "unpack an archive that you trust and give the folder",
        )
    if not os.path.lexists(folder / MANIFEST):
        raise InputError("not-a-model", f"this folder has no {MANIFEST}", str(folder), "check the path")
    try:
        return read_folder(folder, "model", limit)
    except OSError as error:
        raise _refused(f"it cannot be read ({error.strerror})", folder, "check its permissions") from error
