"""What is to be filled is understood as it is said, on the image's own grid, or refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ebbtide.domains.mri.collection import Subject
from ebbtide.domains.mri.holes import parse_holes
from ebbtide.domains.mri.nifti import read_volume
from ebbtide.shared.errors import InputError


@pytest.fixture
def subject(tmp_path: Path, scenes: SimpleNamespace) -> Subject:
    path = scenes.save(tmp_path / "one.nii.gz", scenes.brain((20, 22, 24)))
    return Subject("one", {"T1w": path})


def hidden(subject: Subject, *words: str) -> np.ndarray:
    volumes = {"T1w": read_volume(subject.images["T1w"])}
    return parse_holes(words).of(subject, volumes)[1]["T1w"]


def test_boxes_and_slices_count_both_ends(subject: Subject) -> None:
    mask = hidden(subject, "box:2-4,0-1,7", "slices:2:3,20-21")
    assert mask[2:5, 0:2, 7].all() and mask[:, :, [3, 20, 21]].all()
    assert mask.sum() == 6 + 3 * 20 * 22


def test_a_mask_is_taken_from_a_file_or_from_a_folder(
    subject: Subject, tmp_path: Path, scenes: SimpleNamespace
) -> None:
    values = np.zeros((20, 22, 24))
    values[3, 4, 5] = 2
    scenes.save(tmp_path / "masks" / "one_mask.nii.gz", values)
    for word in (tmp_path / "masks", tmp_path / "masks" / "one_mask.nii.gz"):
        assert np.argwhere(hidden(subject, str(word))).tolist() == [[3, 4, 5]]


def test_thick_slices_get_slices_between(subject: Subject) -> None:
    volume = read_volume(subject.images["T1w"])
    images, holes = parse_holes(["thick:2:3"]).of(subject, {"T1w": volume})
    fine, mask = images["T1w"], holes["T1w"]
    assert fine.shape == (20, 22, 70) and np.array_equal(fine.stored[..., ::3], volume.stored)
    assert not mask[..., ::3].any() and mask.sum() == 20 * 22 * 46
    # the last slice lies where it lay, in millimetres
    for a, b in ((fine, volume),):
        assert np.allclose(a.affine @ [0, 0, 69, 1], b.affine @ [0, 0, 23, 1])
    assert fine.spacing[2] == pytest.approx(volume.spacing[2] / 3)


def test_bad_slices_are_those_that_check_finds(tmp_path: Path, scenes: SimpleNamespace) -> None:
    values = scenes.brain((20, 22, 24))
    values[:, :, 11] = 0
    subject = Subject("bad", {"T1w": scenes.save(tmp_path / "bad.nii.gz", values)})
    mask = hidden(subject, "bad-slices")
    assert mask[:, :, 11].all() and mask.sum() == 20 * 22


@pytest.mark.parametrize(
    "words, code",
    [
        (["box:1-2,3"], "fill"),
        (["box:4-2,1,1"], "fill"),
        (["slices:3:1"], "fill"),
        (["thick:2:1"], "fill"),
        (["no-such-file.nii"], "fill"),
        (["thick:2:2", "slices:0:1"], "thick-alone"),
        (["slices:2:24"], "hole-outside"),
        (["box:0-20,0,0"], "hole-outside"),
    ],
)
def test_what_cannot_be_filled_is_refused(subject: Subject, words: list[str], code: str) -> None:
    with pytest.raises(InputError) as error:
        hidden(subject, *words)
    assert error.value.fault.code == code


def test_masks_must_lie_on_the_grid_and_be_there(
    subject: Subject, tmp_path: Path, scenes: SimpleNamespace
) -> None:
    scenes.save(tmp_path / "other.nii.gz", np.ones((20, 22, 23)))
    scenes.save(tmp_path / "moved.nii.gz", np.ones((20, 22, 24)), scenes.affine((1, 2, 2)))
    for name in ("other", "moved"):
        with pytest.raises(InputError, match="mask-grid"):
            hidden(subject, str(tmp_path / f"{name}.nii.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="mask-missing"):
        hidden(subject, str(tmp_path / "empty"))
