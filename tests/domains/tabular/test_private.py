"""Differential privacy of generated tables: what looks at the rows, how much, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ebbtide.domains.tabular.codec import TableCodec
from ebbtide.domains.tabular.declared import Declaration, merged
from ebbtide.domains.tabular.private import (
    PrivacySettings,
    encoded,
    finest_parts,
    fit_privately,
    nearest_counts,
    noisy_counts,
)
from ebbtide.pipelines.cli import main
from ebbtide.shared.errors import InputError
from ebbtide.shared.levels import LevelsDenoiser, LevelsNetwork, LevelsShape
from ebbtide.shared.private import (
    PrivateTraining,
    clipped_sum,
    epsilon_of,
    noise_for,
    private_step,
    require_opacus,
)

DECLARED = """
age: {low: 18, high: 90}
bmi: {low: 10, high: 60, decimals: 1, missing: yes}
gain: {low: 0, high: 100000, values: [0], edges: [1000, 10000]}
seen: {low: 2020-01-01, high: 2021-12-31}
sex: {levels: [F, M]}
smoker: {levels: [no, yes], missing: yes}
grade: {levels: [1, 2, 3]}
patient: id
note: skip
"""
ROWS = 600


@pytest.fixture
def declared(tmp_path: Path) -> Declaration:
    path = tmp_path / "ranges.yaml"
    path.write_text(DECLARED, encoding="utf-8")
    return Declaration.read(path)


def table(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    sex = rng.choice(["F", "M"], rows, p=[0.7, 0.3])
    days = pd.Timestamp("2020-03-01") + pd.to_timedelta(rng.integers(0, 400, rows), unit="D")
    return pd.DataFrame(
        {
            "age": rng.integers(18, 91, rows),
            "bmi": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(25, 3, rows).round(1)),
            "gain": np.where(rng.random(rows) < 0.8, 0, rng.integers(1, 90_000, rows)),
            "seen": days.strftime("%Y-%m-%d"),
            "sex": sex,
            "smoker": np.where(rng.random(rows) < 0.1, None, np.where(sex == "M", "yes", "no")),
            "grade": rng.integers(1, 4, rows),
            "patient": [f"P{k}" for k in range(rows)],
            "note": "private words",
        }
    )


def denoiser(seed: int = 0) -> LevelsDenoiser:
    """A small network whose weights are all in use."""
    torch.manual_seed(seed)
    own = (True,) * 3 + (True, False) * 6 + (True,) * 4
    network = LevelsNetwork(
        LevelsShape((3, 12, 4), (False, True, False), (-2.0,) * 19, own), width=8, depth=2
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return LevelsDenoiser(network, range(3)).eval()


def records(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.stack([torch.randint(0, count, (rows,)) for count in (3, 12, 4)], 1)
    codes[1, 1], codes[2] = -1, -1  # a cell that is not known; a row that is empty
    return codes, torch.rand(rows, 2, 3) < 0.6


def gradient_of(model: LevelsDenoiser, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """One row's gradient by autograd alone: (C,), (K, C)."""
    known = (codes >= 0).expand(hidden.shape)
    full = codes.clamp(min=0).expand(hidden.shape)
    surprise = model.surprise(model.network(full, hidden | ~known), full) * (hidden & known)
    loss = (surprise.sum(1) / (hidden & known).sum(1).clamp(min=1)).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def flat(model: LevelsDenoiser, total: dict[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.cat([total[parameter].flatten() for parameter in model.parameters()])


# ------------------------------------------------------------------------------------------------ the steps


def test_the_gradient_of_each_row_is_that_of_autograd() -> None:
    model, (codes, hidden) = denoiser(), records(9)
    total, norms = clipped_sum(model, codes, hidden, 1e9)
    mine = torch.stack([gradient_of(model, *one) for one in zip(codes, hidden, strict=True)])
    torch.testing.assert_close(norms.float(), mine.norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat(model, total), mine.sum(0), rtol=1e-4, atol=1e-5)
    assert norms[2] == 0  # nothing is learnt from an empty row


def test_no_row_moves_the_sum_by_more_than_the_clipping_norm() -> None:
    model, (codes, hidden) = denoiser(), records(9)
    whole, norms = clipped_sum(model, codes, hidden, 0.25)
    assert (norms[[0, 1, 3, 4]] > 0.25).all()  # so that the cut is at work
    for row in range(len(codes)):
        without = codes.clone()
        without[row] = -1
        other, _ = clipped_sum(model, without, hidden, 0.25)
        moved = float((flat(model, whole) - flat(model, other)).double().norm())
        assert moved <= 0.25 * (1 + 1e-5)
        if row != 2:
            assert moved == pytest.approx(min(0.25, float(norms[row])), rel=1e-3)


def test_the_noise_of_a_step_is_as_it_was_computed() -> None:
    model, (codes, _) = denoiser(), records(40)
    codes[:] = -1  # rows that teach nothing leave the noise alone
    how = PrivateTraining(noise=1.7, clip=0.25, rate=0.5, steps=1, hidings=2, learning_rate=1e-3)
    drawn = torch.cat(
        [flat(model, private_step(model, codes, how, torch.Generator().manual_seed(k))) for k in range(20)]
    )
    assert float(drawn.std()) == pytest.approx(1.7 * 0.25 / (0.5 * 40), rel=0.03)
    assert abs(float(drawn.mean())) < 4 * float(drawn.std()) / math.sqrt(len(drawn))


def test_the_rows_of_a_step_are_chosen_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from ebbtide.shared import private

    sizes = []

    def count(model: LevelsDenoiser, codes: torch.Tensor, *rest: object) -> object:
        sizes.append(len(codes))
        return {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}, None

    monkeypatch.setattr(private, "clipped_sum", count)
    model, codes = denoiser(), torch.zeros(200, 3, dtype=torch.int64)
    how = PrivateTraining(noise=1.0, clip=1.0, rate=0.1, steps=1, hidings=2, learning_rate=1e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        private_step(model, codes, how, rng)
    assert np.mean(sizes) == pytest.approx(20, abs=1) and np.var(sizes) == pytest.approx(18, rel=0.3)


# --------------------------------------------------------------------------------------------- the accountant


def test_noise_is_enough_and_not_more_than_needed() -> None:
    pytest.importorskip("opacus")
    first = [(30.0, 1.0, 1)]
    noise = noise_for(2.0, 1e-5, 0.1, 200, first)
    assert 1.95 < epsilon_of([*first, (noise, 0.1, 200)], 1e-5) <= 2.0
    assert epsilon_of([*first, (0.99 * noise, 0.1, 200)], 1e-5) > 2.0


def test_one_gaussian_mechanism_costs_what_the_formula_says() -> None:
    """Mironov 2017, proposition 3, by the conversion of Balle et al. 2020 at the best order."""
    pytest.importorskip("opacus")
    sigma, delta = 4.0, 1e-5
    orders = np.linspace(1.01, 200, 20_000)
    best = orders / (2 * sigma**2) + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    assert epsilon_of([(sigma, 1.0, 1)], delta) == pytest.approx(best.min(), rel=2e-3)


# ------------------------------------------------------------------------------------------- what is declared


def test_the_encoding_does_not_depend_on_the_rows(declared: Declaration) -> None:
    frame, other = table(), table()
    other.loc[5] = [17, 99.0, -3, "2031-01-01", "X", "maybe", 9, "Q", None]  # all of it outside
    columns, codec = declared.of(frame), TableCodec()
    parts = finest_parts(columns)
    first, second = (encoded(one, columns, parts, codec) for one in (frame, other))
    assert (np.delete(first, 5, 0) == np.delete(second, 5, 0)).all()
    by_name = dict(zip([part.name for part in parts.parts], second[5], strict=True))
    assert by_name["age"] == 0 and by_name["gain"] == 0  # the ends of their ranges
    assert by_name["sex"] == by_name["smoker"] == by_name["grade"] == -1  # not known
    assert by_name["bmi"] == parts.parts[1].seen - 1


def test_a_cell_is_read_as_it_is_however_the_file_holds_it(declared: Declaration) -> None:
    frame = table(40)
    columns, codec = declared.of(frame), TableCodec()
    parts = finest_parts(columns)
    held = encoded(frame, columns, parts, codec)
    words = frame.astype(object).map(lambda cell: cell if cell is None or cell != cell else f" {cell}")
    assert (encoded(words, columns, parts, codec) == held).all()


def test_missing_is_a_level_only_where_it_is_declared(declared: Declaration) -> None:
    frame = table(40)
    frame.loc[:3, ["age", "bmi", "sex", "smoker"]] = None
    columns = declared.of(frame)
    parts = finest_parts(columns)
    with pytest.warns(RuntimeWarning, match="10% of the cells") as told:
        held = encoded(frame, columns, parts, TableCodec())
    assert [str(one.message).split(":")[0] for one in told] == ["column 'age'", "column 'sex'"]
    at = {part.name: place for place, part in enumerate(parts.parts)}
    assert (held[:4, at["age"]] == -1).all() and (held[:4, at["sex"]] == -1).all()
    for name in ("bmi", "smoker"):
        assert (held[:4, at[name]] == parts.parts[at[name]].levels - 1).all()


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("age: {low: 18, high: 90}", "undeclared", "'bmi'"),
        (DECLARED + "agee: {low: 1, high: 2}", "ranges-column", "agee"),
        ("age: {low: 90, high: 18}", "ranges-value", "'age'"),
        ("age: {low: a, high: 18}", "ranges-value", "'age'"),
        ("age: {low: 1, hi: 18}", "ranges-key", "'hi'"),
        ("sex: {levels: F}", "ranges-value", "'sex'"),
        ("sex: {levels: [1, 1.0]}", "ranges-value", "'sex'"),
        ("sex: yes", "ranges-value", "'sex'"),
        ("- 3", "ranges-yaml", "ranges.yaml"),
    ],
)
def test_what_is_not_declared_is_refused_by_name(tmp_path: Path, text: str, code: str, named: str) -> None:
    path = tmp_path / "ranges.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Declaration.read(path).of(table(3))
    assert caught.value.fault.code == code and named in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.fault.remedy


# ------------------------------------------------------------------------------------------------ the counts


def test_a_row_is_in_one_count_of_each_part_and_the_noise_is_as_asked(declared: Declaration) -> None:
    frame = table()
    columns = declared.of(frame)
    parts = finest_parts(columns)
    levels = encoded(frame, columns, parts, TableCodec())
    without = levels.copy()
    without[7] = -1
    exact = [noisy_counts(held, parts, 0.0, torch.Generator()) for held in (levels, without)]
    moved = np.concatenate(exact[0]) - np.concatenate(exact[1])
    assert (moved**2).sum() == len(parts.parts) and set(np.unique(moved)) == {0.0, 1.0}
    noise = np.concatenate(
        noisy_counts(levels, parts, 6.0, torch.Generator().manual_seed(1))
    ) - np.concatenate(exact[0])
    assert noise.std() == pytest.approx(6.0, rel=0.1)


def test_levels_are_joined_until_they_stand_out_of_the_noise(declared: Declaration) -> None:
    bins = declared.columns["age"].bins()
    counts = np.where(np.arange(73) == 40, 500.0, 2.0)
    joined, places = merged(bins, counts, 10.0, ())
    assert len(joined) < 20 and joined.alone.sum() == 1 and joined.knots[places[40], 0] == 58
    ages = np.arange(18.0, 91)
    assert (joined.encode(ages) == places).all()  # cells fall where their finest level went
    assert (joined.decode(places, np.full(73, 0.5)) >= 17.5).all()
    whole = declared.columns["gain"].bins()
    kept, _ = merged(whole, np.zeros(len(whole)), 10.0, (0.0,))
    assert kept.knots[0, 0] == kept.knots[0, -1] == 0.0 or kept.alone.sum() == 1


def test_counts_become_shares_that_noise_cannot_push_below_nought() -> None:
    assert nearest_counts(np.array([50.0, 30.0, -4.0]), 80).tolist() == [50.0, 30.0, 0.0]
    assert nearest_counts(np.array([60.0, 40.0]), 80).tolist() == [50.0, 30.0]


# ---------------------------------------------------------------------------------------------- the whole


def quick(declared: Declaration, epsilon: float = 3.0) -> PrivacySettings:
    return PrivacySettings(epsilon, declared, passes=2, width=16, depth=1)


def test_nothing_but_counts_and_steps_depends_on_the_rows(
    declared: Declaration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both silenced, two tables that differ in all cells give the same model bit for bit."""
    pytest.importorskip("opacus")
    from ebbtide.domains.tabular import private

    monkeypatch.setattr(
        private,
        "noisy_counts",
        lambda levels, parts, spread, rng: [np.full(part.levels, 10.0) for part in parts.parts],
    )
    monkeypatch.setattr(private, "train_privately", lambda *_, **__: None)
    frame = table()
    other = frame.sample(frac=1, random_state=1).reset_index(drop=True).assign(age=30, sex="M", bmi=20.0)
    models = [fit_privately(one, quick(declared)) for one in (frame, other)]
    states = [(codec.to_dict(), *made.state(), facts) for codec, made, facts in models]
    assert states[0][0] == states[1][0] and states[0][1] == states[1][1] and states[0][3] == states[1][3]
    for name, tensor in states[0][2].items():
        assert torch.equal(tensor, states[1][2][name]), name


def test_combinations_are_not_learnt_without_noise(declared: Declaration) -> None:
    pytest.importorskip("opacus")
    with pytest.raises(InputError, match="together"):
        fit_privately(table(), quick(declared), rules=["together(sex,smoker)"])


def test_from_the_command_line_to_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opacus")
    (tmp_path / "ranges.yaml").write_text(DECLARED, encoding="utf-8")
    table().to_csv(tmp_path / "real.csv", index=False)
    words = ["train", f"{tmp_path}/real.csv", "-o", f"{tmp_path}/model", "--epsilon", "5"]
    assert main(words) == 2 and "--ranges" in capsys.readouterr().err
    words += ["--ranges", f"{tmp_path}/ranges.yaml"]
    assert main(words) == 2 and "--only generate" in capsys.readouterr().err
    assert main([*words, "--only", "generate", "--constraint", "age>=21"]) == 0
    capsys.readouterr()
    assert main(["info", f"{tmp_path}/model"]) == 0
    told = capsys.readouterr().out
    assert "epsilon 5, delta 1e-05" in told and "noise multiplier" in told
    wish = ["--condition", "sex=F,seen=2020-05-01..2020-06-30", "-n", "300"]
    assert main(["generate", f"{tmp_path}/model", "-o", f"{tmp_path}/out", *wish]) == 0
    rows = pd.read_csv(tmp_path / "out" / "synthetic.csv")
    assert (rows["sex"] == "F").all() and rows["age"].between(21, 90).all()
    assert rows["seen"].between("2020-05-01", "2020-06-30").all()
    assert set(rows["grade"]) <= {1, 2, 3} and rows["note"].isna().all() and rows["patient"].is_unique
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    spent = manifest["model"]["differential_privacy"]
    assert 4 < spent["spent"] <= 5
    assert {"unit", "accountant", "clipping_norm", "noise_multiplier", "sampling_rate", "steps"} <= set(spent)
    assert "epsilon 5" in (tmp_path / "out" / "card.yaml").read_text()
    # What hangs on single rows is not in the model: the hash of the data would tell whether a guess is right.
    held = "".join(path.read_text(encoding="latin-1") for path in (tmp_path / "model").iterdir())
    assert "data_sha256" not in held and "private words" not in held


def test_without_opacus_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match=r"pip install 'ebbtide\[dp\]'"):
        require_opacus()
