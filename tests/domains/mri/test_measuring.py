"""Synthetic scans beside real ones: features by closed forms, planted copies, the whole comparison."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ebbtide.domains import Comparison
from ebbtide.domains.mri.copied import Likeness, among_themselves, judged, nearest, planted, simple
from ebbtide.domains.mri.domain import MriDomain
from ebbtide.domains.mri.radiomics import intensity, label_shapes, layout, radiomics, shape, symmetry
from ebbtide.shared.errors import InputError


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def person(seed: int, shape: tuple[int, int, int] = (20, 24, 20)) -> np.ndarray:
    """A ball with soft edges whose texture is someone's own."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    a = rng.uniform(-6, 6, (6, 3))
    waves = sum(np.sin(k[0] * x + k[1] * y + k[2] * z + rng.uniform(0, 6)) for k in a)
    edge = np.clip((0.85 - np.sqrt(x**2 + y**2 + z**2)) / 0.3, 0, 1)
    return np.asarray(edge * np.clip(0.6 + 0.12 * waves, 0.15, 1.1), np.float32)


# --- features ---------------------------------------------------------------------------------


def test_first_order_and_co_occurrence_of_a_chequered_block() -> None:
    """Two levels by turns along one axis: neighbours differ by 8 of 16 levels, or by none."""
    values = np.full((8, 8, 8), 0.2, np.float32)
    values[::2] = 0.2 + 8 * 1.25 / 16
    found = intensity(values, np.ones(values.shape, bool))
    assert found["first mean"] == pytest.approx(0.5125) and found["first std"] == pytest.approx(0.3125)
    assert found["first entropy"] == pytest.approx(1) and found["first kurtosis"] == pytest.approx(-2)
    # pairs of neighbours that step along the axis, of all pairs: 9 of 13 directions, each with its own number
    steps = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if (i, j, k) > (0, 0, 0)]
    pairs = np.array([np.prod([8 - abs(s) for s in step]) for step in steps])
    differ = pairs[[step[0] != 0 for step in steps]].sum() / pairs.sum()
    assert found["glcm contrast"] == pytest.approx(64 * differ)
    assert found["glcm inverse difference"] == pytest.approx(1 - differ + differ / 9)
    assert found["glcm energy"] == pytest.approx(2 * (differ / 2) ** 2 + 2 * ((1 - differ) / 2) ** 2)


def test_shape_of_a_box() -> None:
    inside = np.zeros((20, 20, 20), bool)
    inside[3:13, 4:12, 5:9] = True
    found = shape(inside, np.array([1.0, 2.0, 3.0]))
    assert found["shape volume"] == pytest.approx(10 * 8 * 4 * 6 / 1000)
    assert [found[f"shape extent {a}"] for a in "RAS"] == [10, 16, 12]
    faces = 2 * (8 * 4 * 6 + 10 * 4 * 3 + 10 * 8 * 2)
    assert found["shape surface over volume"] == pytest.approx(faces / 1920)
    spread = [np.sqrt((n**2 - 1) / 12) * s for n, s in ((10, 1), (4, 3), (8, 2))]
    assert found["shape elongation"] == pytest.approx(spread[1] / spread[2], rel=2e-3)
    assert found["shape flatness"] == pytest.approx(spread[0] / spread[2], rel=2e-3)


def test_grain_shows_in_the_finest_detail_alone() -> None:
    """A box of 27 voxels takes 26 of 27 parts of its variance from white noise, and nothing from a slope."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0.2, 0.8, 24)[:, None, None] * np.ones((24, 24, 24))
    whole = np.ones(slope.shape, bool)
    own = intensity(slope.astype(np.float32), whole)
    grainy = (slope + 0.05 * rng.normal(size=slope.shape)).astype(np.float32)
    more = intensity(grainy, whole)
    assert own["detail 3"] < 0.005
    assert more["detail 3"] == pytest.approx(0.05 * np.sqrt(26 / 27), rel=0.03)
    assert more["detail 9"] < 0.015 and more["glcm contrast"] > own["glcm contrast"]


def test_symmetry_labels_and_layout() -> None:
    whole = person(1)
    assert symmetry(whole + whole[::-1]) == pytest.approx(1) and symmetry(whole) < 1
    labels = np.zeros((20, 20, 20), int)
    labels[2:6, 2:6, 2:10] = 2
    found = label_shapes(labels, (1, 2), np.array([9.5, 9.5, 9.5]), np.array([2.0, 2, 2]))
    assert found["label 2 volume"] == pytest.approx(128 * 8 / 1000) and found["label 1 volume"] == 0
    assert [found[f"label 2 place {a}"] for a in "RAS"] == [-12, -12, -8]
    assert np.isnan(found["label 1 elongation"])
    blocks = layout(np.arange(12.0).reshape(1, 12, 1, 1) * np.ones((1, 12, 12, 7)))
    assert blocks.shape == (216,) and np.allclose(blocks.reshape(6, -1).T, np.arange(6) * 2 + 0.5)


def test_names_of_channels_are_said_where_there_are_several() -> None:
    x = np.stack([person(0), person(1)])
    found = radiomics(x, np.ones(x.shape, bool), {"T1w": True, "T2w": True}, np.ones(3))
    assert {"first mean, T1w", "first mean, T2w", "air level, T1w", "shape volume"} <= set(found)
    assert "air level" not in radiomics(x[:1], np.ones((1, *x.shape[1:]), bool), {"T1w": False}, np.ones(3))


# --- copies -----------------------------------------------------------------------------------


def test_planted_copies_are_found_and_fresh_people_are_not() -> None:
    people = torch.from_numpy(np.stack([person(i)[None] for i in range(24)]))
    seen = torch.ones_like(people, dtype=torch.bool)
    train, fresh = (people[:12], seen[:12]), (people[12:], seen[12:])
    likeness = Likeness.of(*train, (True,))
    plants, whom = planted(train, 20, 3)
    apart, where = nearest(likeness, plants)
    reference, _ = among_themselves(train, (True,))
    assert torch.equal(where, whom)
    mixed = [torch.cat([a, b]) for a, b in zip(nearest(likeness, fresh), (apart, where), strict=True)]
    found = judged(*mixed, reference, apart)
    assert not found.flagged[:12].any() and found.flagged[12:].double().mean() >= 0.95
    # what is the same is at no distance, mirrored and moved by whole voxels too, and near in another tone
    changed = people[3].flip(1).roll((1, -1, 1), (1, 2, 3))
    assert float(likeness.distances(changed, seen[3])[3]) < 0.02
    toned = likeness.distances(changed**1.5 * 0.7, seen[3])
    assert int(toned.argmin()) == 3 and float(toned.min()) < 0.5 * float(reference.min())


def test_copies_are_of_somebody_and_differ_as_they_say() -> None:
    people = torch.from_numpy(np.stack([person(i)[None] for i in range(8)]))
    seen = torch.ones_like(people, dtype=torch.bool)
    made = simple((people, seen), 3, 0)
    whom = [next(i for i in range(8) if torch.equal(people[i], one)) for one in made["exact"][0]]
    assert len(set(whom)) == 3
    assert torch.equal(made["mirrored"][0], people[whom].flip(2))
    moved = made["moved"][0][:, :, 2:-2, 2:-2, 2:-2]
    between = (people[whom, :, 1:-3, 3:-1, 1:-3] + people[whom, :, 1:-3, 3:-1, 2:-2]) / 2
    torch.testing.assert_close(moved, between, atol=1e-5, rtol=0)
    assert 0.02 < float((made["jittered"][0] - people[whom])[people[whom] > 0.1].std()) < 0.04


def test_what_is_not_known_does_not_count() -> None:
    people = torch.from_numpy(np.stack([person(i)[None] for i in range(6)]))
    seen = torch.ones_like(people, dtype=torch.bool)
    cut = seen[2].clone()
    cut[:, :, :, 12:] = False
    spoilt = torch.where(cut, people[2], 0.9)
    likeness = Likeness.of(people, seen, (True,))
    apart = likeness.distances(spoilt, cut)
    assert int(apart.argmin()) == 2 and float(apart.min()) < 0.35


# --- the whole --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, scenes: SimpleNamespace) -> dict[str, Path]:
    """Real people whose brightness follows their age, others, and copies of some (mirrored, brighter)."""
    root = tmp_path_factory.mktemp("measured")
    sets = {"real": range(12), "held": range(20, 32), "fresh": range(40, 52), "copies": range(12)}
    for name, seeds in sets.items():
        rows = ["participant_id\tage"]
        for i in seeds:
            age = 40 + 3 * (i % 12)
            values = np.where(person(i) > 0, person(i) ** (age / 50), 0)
            if name == "copies":
                values = 1.3 * values[::-1]
            scenes.save(root / name / f"p{i:02d}_T1w.nii.gz", 100 * values)
            scenes.save(root / name / f"p{i:02d}_dseg.nii.gz", values > 0.6, dtype="u1")
            rows.append(f"p{i:02d}\t{age}")
        (root / name / "participants.tsv").write_text("\n".join(rows) + "\n")
    return {name: root / name for name in sets}


def compared(folders: dict[str, Path], synthetic: str, held: str | None = "held") -> Comparison:
    holdout = None if held is None else folders[held]
    return MriDomain().measure(folders["real"], folders[synthetic], holdout, seed=0)


@pytest.fixture(scope="module")
def fresh(folders: dict[str, Path]) -> Comparison:
    torch.set_default_dtype(torch.float32)
    return compared(folders, "fresh")


def test_fresh_people_pass_and_copies_do_not(folders: dict[str, Path], fresh: Comparison) -> None:
    copied = compared(folders, "copies")
    privacy = {f.name: f for f in fresh.figures["privacy"]}
    assert privacy["share that are copies"].synthetic == 0 == privacy["share that are copies"].reference
    for what in ("", ": exact", ": mirrored", ": moved", ": jittered"):
        assert privacy[f"planted copies found{what}"].synthetic >= 0.95  # type: ignore[operator]
    assert fresh.verdict["privacy"][0] == "No copy found by this search"
    assert {f.name: f for f in copied.figures["privacy"]}["share that are copies"].synthetic == 1
    assert (
        copied.verdict["privacy"][0].startswith("12 of 12") and len(copied.facts["copies"]["flagged"]) == 12
    )
    said = " ".join(words for found in (fresh, copied) for words in found.verdict["privacy"][1])
    assert "recognised" in said and "anonym" not in said.lower()
    assert not copied.pictures  # a copy shows somebody
    for picture in (*fresh.pictures.values(), *fresh.internal.values(), *copied.internal.values()):
        assert picture[:4] == b"\x89PNG"
    names = {f.name for f in fresh.figures["fidelity"]}
    assert {"MMD, radiomics", "coverage", "volume of label 1, gap between distributions"} <= names
    (age,) = fresh.figures["utility"]
    assert age.name == "age told from a scan" and age.synthetic > 0.5  # type: ignore[operator]
    assert "few-scans" in {fault.code for fault in fresh.faults}
    assert "held-out" in fresh.reference


def test_the_same_seed_gives_the_same_figures(folders: dict[str, Path], fresh: Comparison) -> None:
    again = compared(folders, "fresh")
    assert again.figures == fresh.figures and again.facts == fresh.facts


def test_without_a_holdout_halves_are_the_reference(folders: dict[str, Path]) -> None:
    found = compared(folders, "copies", None)
    assert "half" in found.reference and any("--holdout" in said for said in found.verdict["privacy"][1])


def test_a_holdout_that_was_trained_on_is_noticed(folders: dict[str, Path]) -> None:
    assert "holdout-seen" in {fault.code for fault in compared(folders, "fresh", "copies").faults}


def test_what_cannot_be_compared_is_refused(
    folders: dict[str, Path], scenes: SimpleNamespace, tmp_path: Path
) -> None:
    for i in range(4):
        scenes.save(tmp_path / f"p{i}_FLAIR.nii.gz", 100 * person(i))
    with pytest.raises(InputError, match="mri-no-modality"):
        MriDomain().measure(folders["real"], tmp_path, None, seed=0)
    (tmp_path / "p0_FLAIR.nii.gz").unlink()
    with pytest.raises(InputError, match="few-scans"):
        MriDomain().measure(folders["real"], tmp_path, None, seed=0)
