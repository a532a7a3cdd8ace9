"""What lies in a folder is found out from names and tables, whatever the custom."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.domains.mri.collection import collect, read_subject
from ebbtide.shared.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Empty files: nothing here reads a voxel."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def told(path: Path, **options: Any) -> dict[str, tuple[list[str], bool]]:
    """Subject -> modalities, and whether there is a segmentation."""
    return {s.name: (list(s.images), s.segmentation is not None) for s in collect(path, **options)}


def test_plain_files(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.nii", "._a.nii", "notes.txt", ".hidden/c.nii")
    assert told(tmp_path) == {"a": (["image"], False), "b": (["image"], False)}


def test_modalities_and_segmentations_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "s1_T1w.nii.gz", "s1_FLAIR.nii.gz", "s1_dseg.nii.gz", "s2-t1.nii.gz", "s2_seg.nii.gz")
    assert told(tmp_path) == {"s1": (["FLAIR", "T1w"], True), "s2": (["T1w"], True)}
    assert told(tmp_path, modalities=["flair"]) == {"s1": (["FLAIR"], True)}
    with pytest.raises(InputError, match="no image is T2w; there is FLAIR, T1w"):
        collect(tmp_path, modalities=["T2w"])


def test_modalities_and_segmentations_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, "t1/a-1.nii.gz", "t2/a-1.nii.gz", "seg/a-1.nii.gz", "t1/b.nii.gz")
    want = {"a-1": (["T1w", "T2w"], True), "b": (["T1w"], False)}
    assert told(tmp_path) == want
    assert told(tmp_path / "t1") == {"a-1": (["T1w"], True), "b": (["T1w"], False)}


def test_a_folder_for_each_subject(tmp_path: Path) -> None:
    touch(tmp_path, "p1/t1.nii.gz", "p1/flair.nii.gz", "p1/seg.nii.gz", "B_2/B_2_t1ce.nii", "B_2/B_2_seg.nii")
    assert told(tmp_path) == {"B_2": (["T1ce"], True), "p1": (["FLAIR", "T1w"], True)}


def test_the_same_name_in_two_folders_is_two_subjects(tmp_path: Path) -> None:
    touch(tmp_path, "site1/001.nii", "site2/001.nii", "site2/002.nii")
    assert list(told(tmp_path)) == ["002", "site1_001", "site2_001"]


def test_decathlon(tmp_path: Path) -> None:
    touch(
        tmp_path, "imagesTr/h_1.nii.gz", "imagesTr/h_2.nii.gz", "labelsTr/h_1.nii.gz", "imagesTs/h_9.nii.gz"
    )
    found = collect(tmp_path)
    assert found.layout == "decathlon" and len(found) == 2 and any("imagesTr" in note for note in found.notes)
    assert told(tmp_path) == {"h_1": (["image"], True), "h_2": (["image"], False)}
    touch(other := tmp_path / "o", "images/h_1.nii.gz", "labels/h_1.nii.gz")
    assert collect(other).layout == "decathlon" and told(other) == {"h_1": (["image"], True)}
    assert told(other / "images") == {"h_1": (["image"], True)}


def test_nnunet_counts_its_modalities(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/c_0000.nii.gz", "imagesTr/c_0001.nii.gz", "labelsTr/c.nii.gz")
    assert told(tmp_path) == {"c": (["channel0", "channel1"], True)}


def test_bids(tmp_path: Path) -> None:
    touch(
        tmp_path, "dataset_description.json", "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/func/sub-01_bold.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-2_T1w.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
    )  # fmt: skip
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t50\tF\nsub-02\tn/a\tM\n")
    found = collect(tmp_path)
    assert found.layout == "bids" and [s.name for s in found] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert [dict(s.covariates) for s in found] == [
        {"age": 50.0, "sex": "F"}, {"age": None, "sex": "M"}, {"age": None, "sex": "M"},
    ]  # fmt: skip
    assert any("left out" in note for note in found.notes)


def table(folder: Path, text: str, name: str = "people.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_covariates_from_a_table_beside(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "c.nii")
    table(tmp_path, "id;age;sex;site\nsub-a;50.5;F;2\nb;?;M;1\n")
    found = collect(tmp_path)
    assert found.covariates == ("age", "sex", "site")
    assert [dict(s.covariates) for s in found] == [
        {"age": 50.5, "sex": "F", "site": 2.0},
        {"age": None, "sex": "M", "site": 1.0},
        {"age": None, "sex": None, "site": None},
    ]


def test_names_and_ids_are_never_covariates(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    table(tmp_path, "id,PatientName,birth_date,scan id,surname,age,idea\na,x,y,1,z,5,p\nb,x,y,2,z,6,q\n")
    found = collect(tmp_path)
    assert found.covariates == ("age", "idea") and len([n for n in found.notes if "person" in n]) == 4
    assert not any(word in " ".join(found.notes) for word in (" x", " z"))


def test_free_text_and_numbers_with_a_slip(tmp_path: Path) -> None:
    names = [f"s{i:02d}" for i in range(30)]
    touch(tmp_path, *(f"{name}.nii" for name in names))
    rows = [f"{name},{i if i else 'forty'},remark {i}" for i, name in enumerate(names)]
    table(tmp_path, "\n".join(["id,age,remark", *rows]))
    found = collect(tmp_path)
    assert found.covariates == ("age",)
    assert found.subjects[0].covariates["age"] is None and found.subjects[9].covariates["age"] == 9
    assert any("1 cells are not numbers" in note for note in found.notes)


def test_a_table_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    with pytest.raises(InputError, match=r"row-length.*rows 2"):
        collect(tmp_path, covariates=table(tmp_path, "id,age\na,1\nb\n", "x.csv"))
    with pytest.raises(InputError, match=r"covariates-twice.*row 2"):
        collect(tmp_path, covariates=table(tmp_path, "id,age\na,1\na,2\n", "y.csv"))
    with pytest.raises(InputError, match="covariates-match"):
        collect(tmp_path, covariates=table(tmp_path, "id,age\nq,1\n", "z.csv"))
    with pytest.raises(InputError, match="not-found"):
        collect(tmp_path, covariates=tmp_path / "none.csv")


def test_sessions_have_rows_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sub-1/ses-{s}/anat/sub-1_ses-{s}_T1w.nii.gz" for s in "ab"))
    table(
        tmp_path, "participant_id\tsession_id\tage\nsub-1\tses-a\t50\nsub-1\tses-b\t52\n", "participants.tsv"
    )
    assert [s.covariates["age"] for s in collect(tmp_path)] == [50, 52]


def test_segmentations_may_lie_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz", "mine/a_mask.nii.gz")
    assert told(tmp_path / "scans", segmentation=tmp_path / "mine") == {
        "a": (["image"], True), "b": (["image"], False),
    }  # fmt: skip


def test_one_file_is_a_collection_of_one(tmp_path: Path, scenes: Any) -> None:
    path = scenes.save(tmp_path / "one_T1w.nii.gz", np.ones((3, 3, 3)))
    found = collect(path)
    assert found.layout == "file" and found.subjects[0].images == {"T1w": path}
    touch(tmp_path, "two.nii")
    assert told(tmp_path) == {"one": (["T1w"], False), "two": (["image"], False)}
    assert len(collect(tmp_path).subset(["two"])) == 1


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not-found"):
        collect(tmp_path / "none")
    touch(tmp_path, "a.txt")
    with pytest.raises(InputError, match="mri-nothing"):
        collect(tmp_path)


def test_a_file_of_another_kind_is_told_by_the_reader(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("age,sex\n" * 90)
    with pytest.raises(InputError, match="this is text, not NIfTI"):
        read_subject(collect(tmp_path / "notes.txt").subjects[0])


def test_without_pydicom_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IM1").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pip install 'ebbtide\[dicom\]'"):
        collect(tmp_path)
