"""The command that fills in reactions and antibody chains works, on few prompts with few masks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import infilling
from benchmarks.infilling import Set, main
from unmask.evaluation.study import Study


def test_the_command_measures_resumes_and_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    settings = {"chain": "light", "share": 0.04}
    adapting = ("entropy-bound", "dependence-bound", "threshold")
    in_a_span = {**settings, "kind": "spans", "span": 4}
    sets = {
        "few": Set("Few masks", "sapiens-vl", "antibodies", settings, strata=2, families=adapting),
        "spans": Set("A span", "sapiens-vl", "antibodies", in_a_span, "few", 0.1, strata=2, families=adapting),
    }
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- infilling:begin -->\n(stale)\n<!-- infilling:end -->\nafter\n")
    monkeypatch.setattr(infilling, "SETS", sets)
    monkeypatch.setattr(infilling, "ROOT", tmp_path)
    monkeypatch.setattr(infilling, "PAGE", page)
    monkeypatch.setattr(infilling, "RESULTS", tmp_path / "infilling.json")
    monkeypatch.setattr(infilling, "SMOOTHING", tmp_path / "smoothing.json")
    monkeypatch.setattr(infilling, "FIXED", {"topk": (2, 4), "random-k": (2, 4)})
    monkeypatch.setattr(
        infilling, "FAMILIES", {"entropy-bound": (1.0,), "dependence-bound": (0.3,), "threshold": (0.9, 0.5)}
    )
    command = ["infilling", "measure", "few", "spans", "--limit", "3", "--out", str(tmp_path / "infilling.json")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    reports = json.loads((tmp_path / "infilling.json").read_text())
    assert list(reports) == ["few", "spans"]
    for report in reports.values():
        assert list(report["temperatures"]) == ["0", "1"]
        assert report["test_prompts"] == report["validation_prompts"] == 3
        assert report["masks"] == 4
        for temperature, found in report["temperatures"].items():
            rules = [row["rule"] for row in found["rows"]]
            assert rules[0] == "top1-entropy"
            assert {"topk", "random-k", "threshold", "entropy-bound", "dependence-bound"} == set(rules[1:])
            assert found["rows"][0]["nfe"] == 4
            assert found["rows"][0]["differences"]["recovered"] == [0.0, 0.0]
            assert ("likelihood" in found["rows"][0]["figures"]) == (temperature == "1")
            assert [one["rule"] for one in found["equal"]] == ["entropy-bound", "dependence-bound"]
            assert found["validation"][0]["nfe"] >= 1
    assert "`topk:k=4`" in capsys.readouterr().out

    def never(*given: object) -> None:
        raise AssertionError("what is kept is computed again")

    monkeypatch.setattr(Study, "answer", never)
    main()
    assert json.loads((tmp_path / "infilling.json").read_text()) == reports
    monkeypatch.setattr(sys, "argv", ["infilling", "render"])
    main()
    assert "### Few masks" in page.read_text()
    assert "(stale)" not in page.read_text()


def test_figures_at_equal_evaluations_are_between_those_of_the_nearest_settings():
    import torch

    from unmask.evaluation.study import Outcome

    def outcome(nfe: float, quality: float) -> Outcome:
        return Outcome(torch.full((1, 3), quality), torch.full((1, 3), float(nfe)), 0.0, {})

    runs = [outcome(16, 0.9), outcome(4, 0.5)]
    found = infilling.at_nfe(8, runs)
    assert found is not None
    assert found["recovered"].tolist() == pytest.approx([0.7] * 3)
    assert infilling.at_nfe(3, runs) is None
    assert infilling.at_nfe(17, runs) is None
