"""A plan is what a person reads and changes, and what training then does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ebbtide.domains.tabular import TableOptions, TabularDomain, plans
from ebbtide.domains.tabular.model import ModelSettings
from ebbtide.pipelines.planning import plan, read_plan
from ebbtide.shared.errors import InputError


@pytest.fixture
def table(tmp_path: Path, gaussian: type, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plans, "TableModel", gaussian)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "who: is it?": [f"p{k:03d}" for k in range(60)],
            "a": rng.normal(size=60).round(2),
            "yes": rng.choice(["?", "x", "y"], 60),
        }
    )
    frame.loc[:6, "a"] = None
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_what_is_written_is_what_is_read(table: Path, tmp_path: Path) -> None:
    settings = ModelSettings(steps=30)
    domain = TabularDomain(TableOptions(missing=("?", "-999"), settings=settings))
    made = plan(table, tmp_path / "plan.yaml", domain=domain, seed=3)
    text = (tmp_path / "plan.yaml").read_text()
    assert "# 7 missing" in text and "# 2 levels" in text
    again = read_plan(tmp_path / "plan.yaml", TabularDomain())
    assert again == replace(made, lines=())
    assert again.domain.options.settings == settings and again.seed == 3 and again.rows == 60
    assert again.domain.options.kinds == {"who: is it?": "id", "a": "number", "yes": "category"}
    assert set(yaml.safe_load(text)["estimate"]) == {"minutes", "memory_mb", "disk_mb"}
    assert any("--plan" in line for line in made.lines)
    with pytest.raises(InputError, match="output-exists"):
        plan(table, tmp_path / "plan.yaml", domain=domain)


@pytest.mark.parametrize(
    "change, code, advice",
    [
        (("rows:", "rowz:"), "plan-key", "did you mean rows"),
        (("  width:", "  witdh:"), "plan-key", "did you mean width"),
        (("number ", "nubmer "), "plan-kind", "did you mean number"),
        (("seed: 0", "seed: zero"), "plan-type", "whole number"),
        (("missing: []", "missing: '?'"), "plan-type", "a list"),
        (("  width: 128", "  width: wide"), "plan-type", "like 128"),
        (("domain: tabular", "domain: !!python/object/apply:os.system [exit]"), "plan-yaml", "line"),
        (("domain: tabular", "domain: mri"), "plan-domain", "plan again"),
        (("columns:", "columns: ["), "plan-yaml", "line"),
    ],
)
def test_a_plan_with_a_slip_is_refused_with_the_way_out(
    table: Path, tmp_path: Path, change: tuple[str, str], code: str, advice: str
) -> None:
    plan(table, tmp_path / "plan.yaml", domain=TabularDomain())
    text = (tmp_path / "plan.yaml").read_text()
    assert change[0] in text
    (tmp_path / "plan.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(InputError, match=code) as caught:
        read_plan(tmp_path / "plan.yaml", TabularDomain())
    assert advice in str(caught.value)


def test_settings_that_choose_themselves_can_be_set(table: Path, tmp_path: Path) -> None:
    plan(table, tmp_path / "plan.yaml", domain=TabularDomain())
    text = (tmp_path / "plan.yaml").read_text()
    assert "  trees: null" in text and "  steps: null" in text
    text = text.replace("  trees: null", "  trees: [2, 6]").replace("  steps: null", "  steps: 40")
    (tmp_path / "plan.yaml").write_text(text)
    settings = read_plan(tmp_path / "plan.yaml", TabularDomain()).domain.options.settings  # type: ignore[attr-defined]
    assert settings.trees == (2, 6) and settings.steps == 40
    (tmp_path / "plan.yaml").write_text(text.replace("[2, 6]", "many"))
    with pytest.raises(InputError, match="plan-type"):
        read_plan(tmp_path / "plan.yaml", TabularDomain())
