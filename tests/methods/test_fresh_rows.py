"""Embedding rows that only forgotten samples looked up end as those of the network before training, and no other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import Declined, MissingNeed, UserError
from expunge.method import Method
from expunge.methods import build, load
from expunge.methods.fresh_rows import tables
from expunge.scenario import Scenario, forget_ids, forget_subject
from expunge.task import Binary
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn
from expunge.zoo import embedding_row
from expunge.zoo.tabular import Table, Tabular
from worlds import QUIET

FRESH, IDLE = load("fresh_rows"), load("no_op")()
SHAPE = Table(2, ("subject", "shop"), (9, 3))
RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, optimizer="adamw", weight_decay=0.0)
WHO = 4


def start() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Tabular(SHAPE, 1)


@dataclass(frozen=True)
class Bank:
    """Rows of eight people, some in the same shops; nobody is the ninth."""

    train: Data
    model: nn.Module

    def ask(self, method: Method, case: Scenario, **more: Any) -> Unlearned:
        common: dict[str, Any] = {"recipe": RECIPE, "new_model": start, "runtime": QUIET, "scenario": case} | more
        ready = prepare(method, self.model, Binary(), train=self.train, **common)
        sets = {"forget": self.train.subset(case.forget), "retain": self.train.without(case.forget)}
        return unlearn(method, ready.model, Binary(), **sets, state=ready.state, **common)


@pytest.fixture(scope="module")
def bank() -> Bank:
    random = torch.Generator().manual_seed(0)
    who = torch.arange(45) % 8
    shop = torch.where(who == WHO, torch.full((45,), 2), torch.arange(45) % 2)  # the third shop is that person's alone
    inputs = {"real": torch.randn(45, 2, generator=random), "categories": torch.stack([who, shop], dim=1)}
    label = (torch.rand(45, generator=random) < 0.4).long()
    train = Data.from_arrays(inputs, label, columns={"subject": who.tolist()})
    return Bank(train, fit(start(), Binary(), train, RECIPE, runtime=QUIET))


def rows(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"embeddings.{name}.weight").detach()


@pytest.mark.parametrize("inner", [{"name": "no_op"}, {"name": "finetune", "epochs": 1}, {"name": "ssd"}])
def test_a_forgotten_persons_row_ends_as_in_a_retrained_network_and_all_else_as_the_method_left_it(
    inner: dict[str, Any], bank: Bank
) -> None:
    case = forget_subject(bank.train, WHO, column="subject")
    assert len(case.forget) > 1
    alone, done = bank.ask(build(inner), case), bank.ask(build({"name": "fresh_rows", "method": inner}), case)
    retrained = bank.ask(load("retrain")(), case)
    assert not torch.equal(embedding_row(alone.model, WHO), embedding_row(start(), WHO))
    assert torch.equal(embedding_row(done.model, WHO), embedding_row(retrained.model, WHO))
    assert torch.equal(embedding_row(done.model, WHO), embedding_row(start(), WHO))
    assert torch.equal(rows(done.model, "shop")[2], rows(start(), "shop")[2])
    others = [i for i in range(9) if i != WHO]
    assert torch.equal(rows(done.model, "subject")[others], rows(alone.model, "subject")[others])
    assert torch.equal(rows(done.model, "shop")[:2], rows(alone.model, "shop")[:2])
    rest = {n: p for n, p in done.model.named_parameters() if "embeddings" not in n}
    assert all(torch.equal(p, alone.model.get_parameter(n)) for n, p in rest.items())


def test_how_many_rows_is_told_and_not_whose(bank: Bank) -> None:
    done = bank.ask(FRESH(method=IDLE), forget_subject(bank.train, WHO, column="subject"))
    assert done.log["rows"] == {"embeddings.subject": 1, "embeddings.shop": 1}
    assert str(WHO) not in json.dumps({k: v for k, v in done.log.items() if k in ("rows", "note")})


def test_who_keeps_a_sample_keeps_the_row(bank: Bank) -> None:
    own = [i for i, who in zip(bank.train.ids, bank.train.column("subject"), strict=True) if who == 3]
    done = bank.ask(FRESH(method=IDLE), forget_ids(bank.train, own[1:]))
    assert torch.equal(rows(done.model, "subject"), rows(bank.model, "subject"))
    assert "The retained samples look up every embedding row that the forgotten ones do." in done.note
    assert done.log["rows"] == {}


def test_a_second_request_ends_what_the_first_began(bank: Bank) -> None:
    own = [i for i, who in zip(bank.train.ids, bank.train.column("subject"), strict=True) if who == WHO]
    case = forget_ids(bank.train, own[:1])
    first = bank.ask(FRESH(method=IDLE), case)
    left = Bank(bank.train.without(own[:1]), first.model)
    done = left.ask(FRESH(method=IDLE), forget_ids(left.train, own[1:]))
    assert torch.equal(embedding_row(done.model, WHO), embedding_row(start(), WHO))


def test_what_a_composition_holds_stays(bank: Bank) -> None:
    case = forget_subject(bank.train, WHO, column="subject")
    method = build({"name": "salun", "method": {"name": "fresh_rows", "method": "no_op"}, "density": 0.3})
    done, drawn = bank.ask(method, case), embedding_row(start(), WHO)
    row, was = embedding_row(done.model, WHO), embedding_row(bank.model, WHO)
    assert bool(((row == drawn) | (row == was)).all())
    assert "were set back" not in done.note


def test_without_a_factory_the_rows_are_drawn_anew(bank: Bank) -> None:
    case = forget_subject(bank.train, WHO, column="subject")
    done = bank.ask(FRESH(method=IDLE), case, new_model=None)
    assert not torch.equal(embedding_row(done.model, WHO), embedding_row(bank.model, WHO))
    assert torch.equal(rows(done.model, "subject")[:WHO], rows(bank.model, "subject")[:WHO])


class Tied(nn.Module):
    """A table that is the last layer too, one that is frozen, a bag that is told its input by name, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fixed, self.plain = nn.Embedding(5, 4), nn.Embedding(5, 4), nn.Embedding(5, 4)
        self.bag, self.last = nn.EmbeddingBag(5, 4), nn.Linear(4, 5)
        self.last.weight = self.words.weight
        self.fixed.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.words(x) + self.fixed(x) + self.plain(x) + self.bag(input=x.unsqueeze(1)))[:, 0]


def test_tables_that_more_than_looking_up_trains_are_left_alone() -> None:
    assert set(tables(Tied())) == {"plain", "bag"}
    torch.manual_seed(0)
    train = Data.from_arrays(torch.arange(20) % 5, torch.arange(20) % 2)
    model, case = Tied(), forget_ids(train, [f"train/{i}" for i in range(0, 20, 5)])  # all with index 0
    done = Bank(train, model).ask(FRESH(method=IDLE), case, new_model=Tied)
    assert done.log["rows"] == {"plain": 1, "bag": 1}
    for name in ("plain", "bag"):
        was, now = (m.get_parameter(f"{name}.weight") for m in (model, done.model))
        assert (was != now).any(dim=1).tolist() == [True, False, False, False, False]
    assert torch.equal(done.model.words.weight, model.words.weight)
    assert torch.equal(done.model.fixed.weight, model.fixed.weight)


def test_a_network_without_embeddings_is_edited_by_the_method_alone(bank: Bank) -> None:
    train = Data.from_arrays(torch.randn(12, 2), torch.arange(12) % 2)
    done = Bank(train, nn.Linear(2, 1)).ask(FRESH(method=IDLE), forget_ids(train, ["train/0"]), new_model=None)
    assert "The network has no embedding whose rows are its alone: none was put back." in done.note


def test_what_is_refused(bank: Bank) -> None:
    case = forget_subject(bank.train, WHO, column="subject")
    with pytest.raises(UserError, match=r"fresh_rows.method to name a method, got None: write method = "):
        FRESH()
    with pytest.raises(Declined, match="retrain trains anew, and draws such rows anew by itself"):
        bank.ask(FRESH(method=load("retrain")()), case)
    with pytest.raises(MissingNeed, match="retain"):
        unlearn(FRESH(method=IDLE), bank.model, Binary(), forget=bank.train.subset(case.forget), runtime=QUIET)
