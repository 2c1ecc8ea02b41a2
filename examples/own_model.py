"""Forget ten patients from a network of one's own, on data the package has never seen, and measure what is left."""

from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.methods import load
from expunge.report import write
from expunge.report.tables import terminal
from expunge.scenario import forget_ids
from expunge.summary import document, section
from expunge.task import Classification
from expunge.unlearn import prepare, unlearn


def train(dataset, seed):  # your own network and training loop: expunge does not need to know them
    torch.manual_seed(seed)
    body = [nn.Linear(30, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU()]
    network = nn.Sequential(*body, nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for x, y in (batch for _ in range(40) for batch in DataLoader(dataset, batch_size=32, shuffle=True)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


table = load_breast_cancer()
x = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0), dtype=torch.float32)
dataset = TensorDataset(x, torch.tensor(table.target))
known, unseen = Subset(dataset, range(400)), Subset(dataset, range(400, len(dataset)))
patients = [f"patient-{i:03}" for i in range(400)]

task, model = Classification(), train(known, seed=0)
data = Data.from_torch(known, ids=patients)
test = Data.from_torch(unseen, name="test")

ssd = load("ssd")()
ready = prepare(ssd, model, task, train=data)  # once; afterwards the data may be thrown away
request = forget_ids(data, patients[40:50], test=test)
done = unlearn(ssd, ready.model, task, forget=data.subset(request.forget), state=ready.state)

rest = Subset(dataset, [i for i in range(400) if patients[i] not in request.forget])
models = {"original": model, "retrained": [train(rest, seed=1), train(rest, seed=2)], "ssd": done}
scores = evaluate(models, task, train=data, test=test, scenario=request)
part = section(scores, name="ten patients", text="Ten of 400 patients are to be forgotten.", counts={})
page = document([part], title="Own model", lead="One request, one seed.", command="python examples/own_model.py")
write(Path("own_model.html"), page, overwrite=True)
Console(width=120).print(terminal(part), f"{done.changed.share:.1%} of the weights changed. Report: own_model.html")
