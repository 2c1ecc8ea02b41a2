"""The README and the guide say what is so, and their code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge import anchors, attacks, choice, methods, metrics, objectives
from expunge.bench import grid
from expunge.data import Data
from expunge.draws import Request
from expunge.fisher import diagonal, kernels, rules
from expunge.methods import load
from expunge.scenario import forget_ids
from expunge.task import Classification
from expunge.unlearn import prepare, unlearn

ROOT = Path(__file__).parent.parent


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_the_table_of_methods_is_the_classes() -> None:
    rows = [r for r in (ROOT / "README.md").read_text().splitlines() if r.startswith("| `")]
    want = []
    for name in methods.names():
        method = choice.example(name)
        source = choice.source(method)
        want.append(f"| `{name}` | {method.prepares.words()} | {method.unlearns.words()} | {source} |")
    assert rows == want


def test_the_five_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    names = {"load": load, "Data": Data, "prepare": prepare, "unlearn": unlearn, "Classification": Classification}
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    scope = {**names, "torch": torch, "model": model, "dataset": torch.utils.data.TensorDataset(x, y)}
    scope["customer_ids"] = [f"c-{i}" for i in range(60)]
    (code,) = blocks("README.md", "python")
    assert len(code.strip().splitlines()) == 5
    exec(code, scope)
    model.load_state_dict(torch.load(tmp_path / "model-without-them.pt", weights_only=True))


def test_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    code = "\n".join(blocks("docs/guide.md", "python"))
    scope: dict[str, object] = {}
    exec(code, scope)
    assert "Value(x=" in capsys.readouterr().out


def test_the_page_on_the_audit_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    exec("\n".join(blocks("docs/guide.md", "python")), scope)  # whose model, data and scores it goes on with
    capsys.readouterr()
    exec("\n".join(blocks("docs/audit.md", "python")), scope)
    said = capsys.readouterr().out
    assert said.count("Bound ") == 2
    assert "Value(x=" in said


def test_the_page_on_the_audit_names_every_family_and_attack() -> None:
    page = (ROOT / "docs/audit.md").read_text()
    table = page[page.index("| family |") : page.index("**Which of these")]
    missing = [name for name in metrics.names() if f"`{name}" not in table and name != "membership"]
    missing += [name for name in attacks.names() if f"/{name}`" not in table]
    assert missing == []


def test_the_page_on_the_diagonal_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.unsqueeze(0)

    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    train = Data.from_arrays(torch.randn(20, 2, 4), torch.arange(20) % 3)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Scale(), nn.Flatten(), nn.Linear(8, 3)).eval()
    scope = {"model": model, "train": train, "case": forget_ids(train, train.ids[:3]), "Classification": Classification}
    scope |= {"rule": rules.rule, "Dense": kernels.Dense}
    Scale.__module__, Scale.__qualname__ = "my_package.layers", "Scale"
    for code in blocks("docs/fisher.md", "python"):
        exec(code, scope)
    assert scope["rest"].count == 17
    assert rules.rule_of(model[2]) is scope["scale"]
    found, want = (diagonal(model, Classification(), train, engine=e).values for e in ("layers", "reference"))
    torch.testing.assert_close(found["2.weight"], want["2.weight"], rtol=1e-5, atol=1e-9)


def test_the_page_on_the_methods_holds() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    assert [name for name in methods.names() if f"`{name}`" not in page] == []
    compositions, own = blocks("docs/methods.md", "python")
    scope: dict[str, Any] = {"__name__": "turn_away"}
    exec(compositions, scope)
    assert scope["sparse"].method.epochs == 2
    assert scope["salient"].density == 0.3
    exec(own, scope)
    data = Data.from_arrays(torch.randn(20, 4), torch.arange(20) % 3)
    done = unlearn(scope["TurnAway"](epochs=1), nn.Linear(4, 3), Classification(), forget=data.subset(data.ids[:5]))
    assert done.log["steps"] == 1


def test_the_page_on_compositions_holds() -> None:
    page = (ROOT / "docs/compositions.md").read_text()
    assert [name for known in (objectives, anchors) for name in known.names() if f"| `{name}` |" not in page] == []
    scope: dict[str, Any] = {"__name__": "flat"}
    for code in blocks("docs/compositions.md", "python"):
        exec(code, scope)
    data = Data.from_arrays(torch.randn(20, 4), torch.arange(20) % 3)
    method = methods.load("compose")(objective=scope["Flat"](), anchor="none", force=True)
    done = unlearn(method, nn.Linear(4, 3), Classification(), forget=data.subset(data.ids[:5]))
    assert done.log["objective"][-1][1] < done.log["objective"][0][1]


def test_every_relative_link_leads_somewhere() -> None:
    for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file.name}: {link}"


def test_every_command_of_the_readme_exists() -> None:
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines() if line.startswith("expunge")]
    assert len(lines) > 8
    from expunge.cli import app

    groups = {g.name: g.typer_instance for g in app.registered_groups if g.typer_instance is not None}
    known = {c.callback.__name__ for c in app.registered_commands if c.callback}
    for words in (line.split() for line in lines):
        inside = (
            [c.name or c.callback.__name__ for c in groups[words[1]].registered_commands if c.callback]
            if words[1] in groups
            else []
        )
        assert words[1] in known or words[2] in inside, words


def test_the_page_on_the_benchmark_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("docs/benchmark.md", "toml")
    (tmp_path / "grid.toml").write_text(text)
    whole = grid.load(tmp_path / "grid.toml")
    assert list(whole.methods) == ["finetune", "ssd, α = 5"]
    assert len(whole) == 2 * 10 * 3
    rows = [r for r in (ROOT / "docs/benchmark.md").read_text().splitlines() if re.match(r"\| `\w+[:=]", r)]
    requests = [t for row in rows for t in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(requests) > 10
    assert {Request.parse(t).kind for t in requests} >= {"class", "poison", "single", "sequential", "hardest"}
    tiny = text.replace("seeds = 10 ", "seeds = 1 ").replace('"membership", "probe", ', "")
    tiny = tiny.replace("[data.digits]", "[data.digits]\nlimit = 100").replace("[networks.convnet]", "[networks.mlp]")
    (tmp_path / "grid.toml").write_text(tiny.replace("[methods.finetune]", "[methods.ssd]\n[methods.finetune]"))
    (code,) = blocks("docs/benchmark.md", "python")
    exec(code, {})


def test_the_grids_of_the_examples_are_read() -> None:
    files = sorted((ROOT / "examples").rglob("*grid.toml"))
    assert len(files) == 5
    for file in files:
        assert len(grid.load(file).places) in (1, 3)
