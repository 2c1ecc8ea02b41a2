import pickle
import re

import pytest
import torch

from expunge import zoo
from expunge.data import Data
from expunge.errors import UserError
from expunge.fisher import diagonal
from expunge.runtime import Runtime
from expunge.task import Binary
from expunge.train import Recipe, fit
from expunge.zoo import networks, tabular
from expunge.zoo.networks import Table

SHAPE = Table(2, ("subject", "shop"), (5, 3))
QUIET = Runtime(batch_size=3, progress=False)
PLAIN = Recipe(epochs=3, batch_size=4, lr=0.01, optimizer="adamw", weight_decay=0.0)


def made(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return networks.factory("tabular", SHAPE, 1)().to(dtype)


def rows(n=11, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    who = torch.arange(n) % 4  # nobody is number 4
    shop = torch.randint(3, (n,), generator=draw)
    inputs = {"real": torch.randn(n, 2, generator=draw, dtype=dtype), "categories": torch.stack([who, shop], dim=1)}
    return Data.from_arrays(inputs, torch.arange(n) % 2, columns={"subject": who.tolist()})


def test_the_network_is_its_formula():
    model, batch = made().eval(), rows().read(range(11))
    real, categories = batch.inputs["real"], batch.inputs["categories"]
    person, shop = (model.embeddings[name].weight for name in SHAPE.names)
    assert (person.shape, shop.shape) == ((5, 3), (3, 2))  # 3 = ceil(sqrt(5)), 2 = ceil(sqrt(3))
    x = torch.cat([real, person[categories[:, 0]], shop[categories[:, 1]]], dim=1)
    first, _, second, _, last = model.body
    x = (x @ first.weight.T + first.bias).clamp_min(0)
    x = (x @ second.weight.T + second.bias).clamp_min(0)
    assert torch.allclose(model(real, categories), x @ last.weight.T + last.bias)
    assert networks.build("tabular", Table(1, ("a",), (10_000,)), 1).embeddings["a"].weight.shape == (10_000, 16)
    assert pickle.loads(pickle.dumps(networks.factory("tabular", SHAPE, 2)))()(real.float(), categories).shape == (
        11,
        2,
    )


@pytest.mark.parametrize("of", ["loss", "output_norm"])
def test_the_diagonal_is_the_references_and_tells_who_was_there(of):
    model, options = made().eval(), {"of": of, "runtime": QUIET}
    fast, slow = (diagonal(model, Binary(), rows(), engine=e, **options).values for e in ("auto", "reference"))
    for key, value in slow.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-10, atol=1e-14)
    person = fast["embeddings.subject.weight"]
    assert (person[:4].sum(dim=1) > 0).all()
    assert person[4].tolist() == [0, 0, 0]


def test_a_row_that_no_sample_names_stays_as_it_was_drawn():
    start = made(dtype=torch.float32)
    data = rows(dtype=torch.float32)
    without = data.subset([i for i, who in zip(data.ids, data.column("subject"), strict=True) if who != 2])
    original, retrained = (fit(start, Binary(), part, PLAIN, runtime=QUIET) for part in (data, without))
    before = [tabular.embedding_row(start, who) for who in range(5)]
    for who, left in ((0, False), (2, True), (4, True)):
        assert torch.equal(tabular.embedding_row(retrained, who), before[who]) == left
    assert not torch.equal(tabular.embedding_row(original, 2), before[2])
    assert torch.equal(tabular.embedding_row(original, 4), before[4])


def test_an_embedding_row_is_a_copy():
    model = made()
    row = zoo.embedding_row(model, "3")
    assert torch.equal(row, model.embeddings["subject"].weight[3])
    assert not row.requires_grad
    row.zero_()
    assert model.embeddings["subject"].weight[3].abs().sum() > 0
    assert zoo.embedding_row(model, 1, column="shop").shape == (2,)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: zoo.embedding_row(made(), 5), "a subject 0 to 4, got 5: take it from the column 'subject'"),
        (lambda: zoo.embedding_row(made(), -1), "a subject 0 to 4, got -1"),
        (lambda: zoo.embedding_row(made(), "ann"), "a subject 0 to 4, got 'ann'"),
        (
            lambda: zoo.embedding_row(made(), 0, column="who"),
            "a network with an embedding of 'who', got embeddings of subject, shop: take the network 'tabular'",
        ),
        (lambda: zoo.embedding_row(torch.nn.Linear(1, 1), 0), "got Linear without embeddings"),
        (
            lambda: tabular.check_categories(SHAPE, torch.tensor([[0, 0], [4, 3], [1, 2]])),
            "categories 0 to 2 in 'shop', got 3 in row 1: encode them as the network was built",
        ),
        (
            lambda: tabular.check_categories(SHAPE, torch.tensor([[-1, 0]])),
            "categories 0 to 4 in 'subject', got -1 in row 0",
        ),
        (
            lambda: tabular.check_categories(SHAPE, torch.zeros(2, 3)),
            "categories of shape (N, 2), got shape (2, 3): give the columns subject, shop",
        ),
        (
            lambda: made()(torch.zeros(1, 2).double(), torch.tensor([[0, 3]])),
            "categories 0 to 2 in 'shop', got an index beyond them: encode them as the network was built",
        ),
        (lambda: made()(torch.zeros(1, 2).double(), torch.tensor([[-1, 0]])), "categories 0 to 4 in 'subject'"),
        (
            lambda: networks.factory("tabular", (4,), 1),
            "rows of a table for tabular, got shape (4,): take another network: mlp",
        ),
        (
            lambda: networks.factory("mlp", SHAPE, 1),
            "numbers for mlp, got rows of 2 real and 2 categorical columns: take another network: tabular",
        ),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(UserError, match=re.escape(said)):
        call()
