"""A model folder and a checkpoint are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ebbtide.shared import files
from ebbtide.shared.artifacts import read_model, write_model
from ebbtide.shared.checkpoints import Checkpoints
from ebbtide.shared.errors import EbbtideError, InputError
from ebbtide.shared.files import locked, refuse_existing, replace_atomically, require_space

DISK_CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink")


class Killed(BaseException):
    """Stands for a kill: no `except Exception` and no clean-up of ours sees it."""


@contextmanager
def failing(at: int, error: BaseException) -> Iterator[list[str]]:
    """The `at`-th call to the disk, of any kind, raises `error`, and so do all that follow: a full or dead
    disk does not come back. Yields the calls made."""
    made: list[str] = []
    before = {name: getattr(os, name) for name in DISK_CALLS}

    def wrapped(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            made.append(name)
            if len(made) > at:
                raise error
            return before[name](*args, **kwargs)

        return call

    for name in DISK_CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield made
    finally:
        for name in DISK_CALLS:
            setattr(os, name, before[name])


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((5, 3), value), "n": torch.tensor(int(value))}


# --- the model folder ---------------------------------------------------------------------------


def test_round_trip_keeps_bits_dtypes_and_shapes(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "f64": torch.tensor([1e-300, -0.0, float("inf")], dtype=torch.float64),
        "bf16": torch.tensor([1.5, 3.0], dtype=torch.bfloat16),
        "i64": torch.tensor([2**62, -1]),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7, dtype=torch.int32),
        "view": shared[2:5],  # three names for one memory, which safetensors alone refuses
        "tied": shared,
        "turned": torch.arange(6).reshape(2, 3).T,
    }
    config = {"name": "é", "nested": {"a": [1, 2.5, None, True]}}
    write_model(tmp_path / "deep" / "model", config, tensors)
    read_config, read_tensors = read_model(tmp_path / "deep" / "model")
    assert read_config == config
    assert read_tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read_tensors[name].dtype == tensor.dtype
        assert torch.equal(read_tensors[name], tensor)


def test_tensors_read_are_not_windows_on_the_file(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {}, weights(3))
    _, tensors = read_model(tmp_path / "m")
    (tmp_path / "m" / "weights.safetensors").write_bytes(b"")
    assert torch.equal(tensors["w"], weights(3)["w"])


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path / name, {"x": 1}, weights(1))
    members = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert members == ["config.json", "manifest.json", "weights.safetensors"]
    for name in members:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_extras_are_kept_and_vouched_for(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {}, weights(1), extras={"progress.png": b"png"})
    assert (tmp_path / "m" / "progress.png").read_bytes() == b"png"
    (tmp_path / "m" / "progress.png").write_bytes(b"gnp")
    with pytest.raises(InputError, match=r"progress\.png has another sha256"):
        read_model(tmp_path / "m")
    with pytest.raises(ValueError, match="cannot be a member"):
        write_model(tmp_path / "n", {}, weights(1), extras={"../x.png": b""})


def test_existing_output_needs_overwrite_and_what_is_no_model_is_left_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {"v": 1}, weights(1))
    with pytest.raises(InputError, match="output-exists") as caught:
        write_model(tmp_path / "m", {"v": 2}, weights(2))
    assert caught.value.exit_code == 2
    write_model(tmp_path / "m", {"v": 2}, weights(2), overwrite=True)
    assert read_model(tmp_path / "m")[0] == {"v": 2}
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not-a-model"):
        write_model(papers, {}, weights(1), overwrite=True)
    assert (papers / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "papers"]


def test_an_empty_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write_model(tmp_path / "m", {}, weights(1))
    assert read_model(tmp_path / "m")[0] == {}


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": {1, 2}}, {"x": torch.ones(1)}])
def test_a_configuration_that_is_not_json_is_named(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(EbbtideError, match="not-json"):
        write_model(tmp_path / "m", bad, weights(1))
    assert not (tmp_path / "m").exists()


def test_nan_weights_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(EbbtideError, match=r"weights-nan.*tensor w"):
        write_model(tmp_path / "m", {}, {"w": torch.tensor([0.0, float("nan")])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "I/O"), Killed()])
def test_overwriting_keeps_a_whole_model_at_every_instant(tmp_path: Path, error: BaseException) -> None:
    """Fails at the k-th call to the disk for every k there is: what can be read is the old or the new."""
    folder = tmp_path / "m"
    write_model(folder, {"v": 0}, weights(0))
    last, k = 0, 0
    while True:
        k += 1
        try:
            with failing(k, error) as calls:
                write_model(folder, {"v": k}, weights(k), overwrite=True)
        except (Killed, EbbtideError):
            pass
        config, tensors = read_model(folder)
        assert torch.equal(tensors["w"], weights(config["v"])["w"])
        assert config["v"] in (k, last)
        last = config["v"]
        if len(calls) <= k:
            break
    assert k > 15  # it did go through opens, writes, syncs and renames
    assert config["v"] == k
    write_model(folder, {"v": -1}, weights(1), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing is left lying about


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path) -> None:
    """What a power cut tests: three files and their folder are synced before the rename, the parent after."""
    with failing(10**6, Killed()) as calls:
        write_model(tmp_path / "m", {}, weights(1))
    named = calls.index("rename")
    assert calls[:named].count("fsync") == 4
    assert calls[named:].count("fsync") == 1
    with failing(10**6, Killed()) as calls, replace_atomically(tmp_path / "f") as partial:
        partial.write_text("x")
    assert [call for call in calls if call in ("fsync", "replace")] == ["fsync", "replace", "fsync"]


def test_a_silent_write_error_is_found_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data).replace(b"w", b"v")))
    with pytest.raises(EbbtideError):
        write_model(tmp_path / "m", {}, weights(1))
    assert not (tmp_path / "m").exists()


# --- checkpoints --------------------------------------------------------------------------------


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.latest() is None
    for step in (100, 200, 1000):
        kept.save(step, {"s": step}, weights(step))
    assert kept.steps() == [200, 1000]
    last = kept.latest()
    assert last is not None
    assert (last.step, last.state, last.damaged) == (1000, {"s": 1000}, ())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Killed()])
def test_a_checkpoint_is_loadable_at_every_instant(tmp_path: Path, error: BaseException) -> None:
    kept = Checkpoints(tmp_path / "c")
    kept.save(0, {}, weights(0))
    k, newest = 0, 0
    while True:
        k += 1
        try:
            with failing(k, error) as calls:
                kept.save(k, {"s": k}, weights(k))
        except (Killed, EbbtideError):
            pass
        last = kept.latest()
        assert last is not None
        assert last.step in (newest, k)
        assert last.damaged == ()
        assert torch.equal(last.tensors["w"], weights(last.step)["w"])
        newest = last.step
        if len(calls) <= k:
            break
    assert k > 15
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_step_saved_again_is_replaced_and_never_missing(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {"v": 0}, weights(0))
    k, value = 0, 0
    while True:
        k += 1
        try:
            with failing(k, Killed()) as calls:
                kept.save(1, {"v": k}, weights(k))
        except Killed:
            pass
        last = kept.latest()
        assert last is not None
        assert last.state["v"] in (value, k)
        value = last.state["v"]
        if len(calls) <= k:
            break
    assert value == k
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {}, weights(1))
    path = kept.save(2, {}, weights(2)) / "weights.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    last = kept.latest()
    assert last is not None
    assert (last.step, last.damaged) == (1, (2,))
    (kept.path(1) / "config.json").unlink()
    with pytest.raises(InputError, match="sha256"):
        kept.latest()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigkill_while_saving(tmp_path: Path) -> None:
    """A real process that saves without pause, killed five times: what it leaves can be read."""
    kept = Checkpoints(tmp_path / "c")
    kept.save(0, {}, weights(0))
    reached = 0
    for attempt in range(5):
        child = os.fork()
        if child == 0:
            try:
                for step in range(reached + 1, 10**6):
                    kept.save(step, {}, weights(step))
            finally:
                os._exit(1)
        time.sleep(0.05 + 0.013 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        last = kept.latest()
        assert last is not None
        assert last.step >= reached
        assert last.damaged == ()
        assert torch.equal(last.tensors["w"], weights(last.step)["w"])
        reached = last.step
    assert reached > 0


# --- files, space, permissions ------------------------------------------------------------------


def test_replacing_a_file_is_all_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.csv"
    with replace_atomically(out) as partial:
        partial.write_text("one")
        assert not out.exists()
    with pytest.raises(KeyError), replace_atomically(out) as partial:
        partial.write_text("half")
        raise KeyError
    assert [path.name for path in out.parent.iterdir()] == ["out.csv"]
    assert out.read_text() == "one"


def test_disk_faults_are_sentences_and_faults_of_inputs_are_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(EbbtideError, match=r"disk-full: .*out\.csv") as full, replace_atomically(out):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.exit_code == 1
    with pytest.raises(InputError, match=r"read-only: .*out\.csv") as denied, replace_atomically(out):
        raise OSError(errno.EROFS, "Read-only file system")
    assert denied.value.exit_code == 2
    with pytest.raises(FileNotFoundError), replace_atomically(out):
        (tmp_path / "nowhere" / "input.csv").read_text()


def test_short_space_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    require_space(tmp_path / "not" / "yet" / "there", 2_000_000)
    with pytest.raises(EbbtideError, match=r"disk-full.*4\.0 MB are needed and 3\.0 MB are free"):
        require_space(tmp_path / "not" / "yet" / "there", 4_000_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: object, *_: object) -> int:
        raise OSError(code, "refused", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=f"read-only: {tmp_path}"):
        write_model(tmp_path / "m", {}, weights(1))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="read-only"):
            write_model(tmp_path / "m", {}, weights(1))
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="not-a-folder"):
        require_space(tmp_path / "f" / "m", 1)
    refuse_existing(tmp_path / "f", overwrite=True)
    with pytest.raises(InputError, match="output-exists"):
        refuse_existing(tmp_path / "f", overwrite=False)


# --- locks --------------------------------------------------------------------------------------


@contextmanager
def child_holding(folder: Path) -> Iterator[int]:
    """Another process that holds the lock; killed at the end, if it still lives."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with locked(folder):
                os.write(tell, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    try:
        os.read(ready, 1)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("flock", [True, False])
def test_two_processes_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool) -> None:
    if not flock:
        monkeypatch.setattr(files, "fcntl", None)
    folder = tmp_path / "m"
    with child_holding(folder) as child:
        with pytest.raises(InputError, match=f"folder-locked: .*m: another .*process {child} on"):
            write_model(folder, {}, weights(1))
        with pytest.raises(InputError, match="folder-locked"), replace_atomically(folder):
            pass
        assert not folder.exists()
    # The holder was killed: its lock, still lying there, is taken over.
    assert (tmp_path / "m.lock").exists()
    write_model(folder, {}, weights(1))
    assert not (tmp_path / "m.lock").exists()


def test_one_thread_may_lock_again(tmp_path: Path) -> None:
    with locked(tmp_path / "m"):
        write_model(tmp_path / "m", {}, weights(1))
        assert (tmp_path / "m.lock").exists()
    assert not (tmp_path / "m.lock").exists()


def test_without_flock_a_lock_of_another_machine_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    lock = tmp_path / "m.lock"
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
    with pytest.raises(InputError, match="folder-locked"), locked(tmp_path / "m"):
        pass
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    with locked(tmp_path / "m"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    lock.write_text("")  # made, and not yet signed
    with pytest.raises(InputError, match="folder-locked"), locked(tmp_path / "m"):
        pass
    os.utime(lock, (0, 0))
    with locked(tmp_path / "m"):
        pass
