"""`impute_file`: what lies in the output, and that neither units, shards, order nor a kill change a byte
of it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular import TableOptions, TabularDomain
from ebbtide.domains.tabular import domain as domain_module
from ebbtide.pipelines.imputing import impute_file
from ebbtide.pipelines.training import train
from ebbtide.shared.errors import InputError
from ebbtide.shared.files import locked

pytestmark = pytest.mark.usefixtures("gaussian")

LINES = 40


@pytest.fixture(autouse=True)
def quick_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of these tests; one of them looks at the picture."""
    if "leaves_behind" not in request.node.name:
        monkeypatch.setattr(domain_module, "preview", lambda fitted, parts, picture: picture.write_bytes(b""))


def write_table(path: Path, rows: int = LINES, seed: int = 0, order: np.ndarray | None = None) -> Path:
    """A CSV as people write them: quotes, trailing zeros, a text column with a comma, a fifth missing."""
    rng = np.random.default_rng(seed)
    lines = []
    for k in range(rows):
        height = f"{rng.normal(170, 10):.2f}"
        cells = [f"{k:05d}", height, str(int(rng.integers(0, 90))), rng.choice(["f", "m"])]
        cells = [cells[0], *("" if rng.random() < 0.2 else cell for cell in cells[1:])]
        lines.append(",".join([*cells, f'"note {k}, as dictated"']))
    lines = lines if order is None else [lines[k] for k in order]
    path.write_text("\n".join(["id,height,age,sex,remark", *lines]) + "\n")
    return path


def domain(**options: Any) -> TabularDomain:
    return TabularDomain(TableOptions(**options))


def rows_of(folder: Path, name: str = "table.imputed.csv") -> dict[str, str]:
    """id -> sha256 of the row's bytes."""
    lines = (folder / name).read_bytes().splitlines()[1:]
    return {line.split(b",")[0].decode(): hashlib.sha256(line).hexdigest() for line in lines}


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    result = impute_file(table, tmp_path / "out", domain=domain(), all_draws=3)
    out = tmp_path / "out"
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out.lock").exists()
    before, after = table.read_text().splitlines(), (out / "table.imputed.csv").read_text().splitlines()
    frame = pd.read_csv(table, dtype=str)
    for number, (old, new) in enumerate(zip(before[1:], after[1:], strict=True)):
        if frame.iloc[number].notna().all():
            assert old == new
        assert old.split('"')[1] == new.split('"')[1]
    completed = pd.read_csv(out / "table.imputed.csv", dtype=str)
    assert completed.notna().all().all()
    known = frame.notna()
    assert (completed[known] == frame[known]).where(known, True).all().all()
    mask = pd.read_csv(out / "table.mask.csv")
    assert ((mask == 1) == frame.isna()).all().all()
    spread = pd.read_csv(out / "table.spread.csv")
    assert (spread["height.std"].notna() == frame["height"].isna()).all()
    low, high = spread["height.lower"], spread["height.upper"]
    assert (low <= high)[low.notna()].all()
    assert spread["sex.probability"].dropna().between(0, 1).all()
    draws = [pd.read_csv(out / f"draws/table.draw-{d}.csv", dtype=str) for d in (1, 2, 3)]
    assert not draws[0].equals(draws[1]) and all(draw.notna().all().all() for draw in draws)
    assert (out / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert result.summary["missing"] == result.summary["filled"] == int(frame.isna().sum().sum())
    assert "were filled" in result.lines[0]


def test_the_manifest_names_everything_and_quotes_no_cell(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    impute_file(table, tmp_path / "out", domain=domain(missing=("?",)), options={"missing": ["?"]}, seed=5)
    text = (tmp_path / "out" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["made_by"].startswith("ebbtide") and manifest["options"]["seed"] == 5
    assert manifest["options"]["missing"] == ["?"]
    assert manifest["data"]["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert len(manifest["model"]["sha256"]) == 64
    assert manifest["counts"]["columns"]["height"]["filled"] > 0
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert "dictated" not in text and not any(f'"{k:05d}"' in text for k in range(LINES))


def test_units_and_shards_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "table.csv")
    train(table, tmp_path / "model", domain=domain())
    model = tmp_path / "model"
    impute_file(table, tmp_path / "whole", domain=domain(), model=model, statistic="sample", all_draws=2)
    whole = rows_of(tmp_path / "whole")
    monkeypatch.setattr(domain_module, "ROWS_AT_LEAST", 6)
    monkeypatch.setattr(domain_module, "CELLS_AT_A_TIME", 30)  # seven units of six rows
    impute_file(table, tmp_path / "units", domain=domain(), model=model, statistic="sample", all_draws=2)
    for name in ("table.imputed.csv", "table.mask.csv", "table.spread.csv", "draws/table.draw-2.csv"):
        assert (tmp_path / "units" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    shards: dict[str, str] = {}
    for i in range(1, 8):
        out = tmp_path / f"shard{i}"
        impute_file(table, out, domain=domain(), model=model, statistic="sample", all_draws=2, shard=(i, 7))
        shards |= rows_of(out)
    assert shards == whole


def test_memory_does_not_grow_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_module, "CELLS_AT_A_TIME", 2500)  # 500 rows at a time
    head, *lines = write_table(tmp_path / "table.csv", 500).read_text().splitlines()
    train(tmp_path / "table.csv", tmp_path / "model", domain=domain())
    peaks = []
    for times in (2, 8):  # units; a single one has no other before it
        path, begun = tmp_path / f"long{times}.csv", list[str]()
        path.write_text("\n".join([head, *lines * times]) + "\n")

        def after_the_first_unit(stage: str, fraction: float, begun: list[str] = begun) -> None:
            if not begun:  # looking at a file reads its first megabyte, whatever its length
                tracemalloc.reset_peak()
            begun.append(stage)

        tracemalloc.start()
        impute_file(
            path,
            tmp_path / f"out{times}",
            domain=domain(),
            model=tmp_path / "model",
            draws=2,
            progress=after_the_first_unit,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(begun) > times  # it came in units
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_with_a_key_a_shuffled_file_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    order = np.random.default_rng(3).permutation(LINES)
    first, second = write_table(tmp_path / "a/table.csv"), write_table(tmp_path / "b/table.csv", order=order)
    for path, rows in ((first, 50_000), (second, 50_000), (first, 25), (second, 25)):
        out = path.parent / f"out{rows}"
        impute_file(path, out, domain=domain(key="id"), rows=rows, statistic="sample")
    assert rows_of(tmp_path / "a/out50000") == rows_of(tmp_path / "b/out50000")
    assert rows_of(tmp_path / "a/out25") == rows_of(tmp_path / "b/out25")
    assert rows_of(tmp_path / "a/out25") != rows_of(tmp_path / "a/out50000")


def stop_at(monkeypatch: pytest.MonkeyPatch, unit: int) -> Callable[[], None]:
    """Make the filling of one unit fail as a kill would; gives a function that mends it."""
    real, calls = TabularDomain.fill, []

    def fill(self: TabularDomain, *given: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == unit:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(TabularDomain, "fill", fill)
    return lambda: monkeypatch.setattr(TabularDomain, "fill", real)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "table.csv")
    monkeypatch.setattr(domain_module, "ROWS_AT_LEAST", 6)
    monkeypatch.setattr(domain_module, "CELLS_AT_A_TIME", 30)
    impute_file(table, tmp_path / "straight", domain=domain(), all_draws=1)
    mend = stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        impute_file(table, tmp_path / "out", domain=domain(), all_draws=1)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    mend()
    with pytest.raises(InputError, match="unfinished-work"):
        impute_file(table, tmp_path / "out", domain=domain(), all_draws=1, seed=9)
    result = impute_file(table, tmp_path / "out", domain=domain(), all_draws=1)
    assert result.resumed == 3
    for path in (tmp_path / "straight").rglob("*.csv"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "straight")).read_bytes()


def test_output_is_never_overwritten_unasked(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    impute_file(table, tmp_path / "out", domain=domain())
    first = (tmp_path / "out/table.imputed.csv").read_bytes()
    with pytest.raises(InputError, match="output-exists"):
        impute_file(table, tmp_path / "out", domain=domain(), seed=1)
    assert (tmp_path / "out/table.imputed.csv").read_bytes() == first
    impute_file(table, tmp_path / "out", domain=domain(), seed=1, statistic="sample", overwrite=True)
    assert (tmp_path / "out/table.imputed.csv").read_bytes() != first


def hold(folder: Path, held: Any, done: Any) -> None:
    with locked(folder):
        held.set()
        done.wait(20)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "out", held, done))
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(InputError, match="folder-locked"):
            impute_file(table, tmp_path / "out", domain=domain())
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize(
    "options, code",
    [
        ({"shard": (1, 2)}, "shard-model"),
        ({"draws": 0}, "draws"),
        ({"all_draws": 30}, "all-draws"),
        ({"statistic": "average"}, "statistic"),
        ({"model": "nowhere"}, "model-missing"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], code: str) -> None:
    table = write_table(tmp_path / "table.csv")
    with pytest.raises(InputError, match=code):
        impute_file(table, tmp_path / "out", domain=domain(), **options)
    assert not (tmp_path / "out").exists()


def test_a_model_remembers_its_missing_codes(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    table.write_text(table.read_text().replace(",,", ",?,"))
    train(table, tmp_path / "model", domain=domain(missing=("?",)))
    with pytest.raises(InputError, match="model-options"):
        impute_file(table, tmp_path / "out", domain=domain(missing=("-9",)), model=tmp_path / "model")
    impute_file(table, tmp_path / "out", domain=domain(), model=tmp_path / "model")
    assert "?" not in (tmp_path / "out/table.imputed.csv").read_text()


def test_parquet_and_excel_come_back_in_kind(tmp_path: Path) -> None:
    frame = pd.read_csv(write_table(tmp_path / "table.csv"), dtype={"id": str})
    frame.to_parquet(tmp_path / "table.parquet")
    frame.to_excel(tmp_path / "table.xlsx", index=False)
    for name, read in (("table.parquet", pd.read_parquet), ("table.xlsx", pd.read_excel)):
        out = tmp_path / f"out-{name}"
        impute_file(tmp_path / name, out, domain=domain())
        made = read(next(out.glob("table.imputed.*")))
        assert list(made.columns) == list(frame.columns) and len(made) == LINES
        assert made[["height", "age", "sex"]].notna().all().all()
        known = frame["height"].notna()
        assert (made["height"][known] == frame["height"][known]).all()


def test_a_damaged_table_leaves_nothing_behind(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    lines = table.read_text().splitlines()
    lines[7] = lines[7].rpartition(",")[0].rpartition(",")[0]
    table.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"row-length.*row 7"):
        impute_file(table, tmp_path / "out", domain=domain())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv"]


def test_a_shuffled_file_with_a_key_teaches_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(LINES)
    keyed, samples = domain(key="id"), []
    for name, shuffled in (("a.csv", None), ("b.csv", order)):
        path = write_table(tmp_path / name, order=shuffled)
        survey = keyed.survey(path)
        samples += [keyed.sample(path, survey, rows, 0).reset_index(drop=True) for rows in (15, LINES)]
    pd.testing.assert_frame_equal(samples[0], samples[2])
    pd.testing.assert_frame_equal(samples[1], samples[3])
    assert len(samples[0]) == 15
