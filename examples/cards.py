"""Forget a cardholder from a fraud model, all transactions and the embedding row, and count the decisions that turn."""

import argparse

import torch

from expunge import zoo
from expunge.evaluate import evaluate
from expunge.methods import build
from expunge.metric import Value
from expunge.metrics.decisions import Decisions
from expunge.scenario import forget_subject
from expunge.train import fit
from expunge.unlearn import prepare, unlearn

THRESHOLD = 0.1  # probability of fraud above which the bank asks back
METHODS = {
    "finetune": {"name": "finetune", "epochs": 3},
    "finetune, fresh row": {"name": "fresh_rows", "method": {"name": "finetune", "epochs": 3}},
    "ssd": {"name": "ssd"},
    "ssd, fresh row": {"name": "fresh_rows", "method": {"name": "ssd"}},
}
NUMBERS = {
    "flipped": "decisions/flipped/original",
    "flipped to retrained": "decisions/flipped/retrained",
    "PSI": "stability/original/test",
}


def busiest(data):
    """Return the cardholder with the most transactions."""
    people = data.column("subject").tolist()
    return max(sorted(set(people)), key=people.count)


def main(words=None):
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--limit", type=int, help="training transactions; default all")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--threshold", type=float, default=THRESHOLD)
    chosen = asked.parse_args(words)

    problem = zoo.load("cards", limit=chosen.limit)
    task, train, recipe = problem.task, problem.train, problem.recipe
    person = busiest(train)
    case = forget_subject(train, person, column="subject", holdout=problem.holdout, test=problem.test)
    forget, retain = train.subset(case.forget), train.without(case.forget)
    torch.manual_seed(chosen.seed)
    start = problem.new_model()
    original = fit(start, task, train, recipe, seed=chosen.seed)
    again = fit(problem.new_model(), task, retain, recipe, seed=chosen.seed + 1)  # of another seed: the floor

    common = {"recipe": recipe, "new_model": lambda: start, "seed": chosen.seed}
    models = {"original": original, "retrained": [fit(start, task, retain, recipe, seed=chosen.seed), again]}
    for name, settings in METHODS.items():
        method = build(settings)
        ready = prepare(method, original, task, train=train, **common)
        sets = {"forget": forget, "retain": retain, "scenario": case}
        models[name] = unlearn(method, original, task, **sets, state=ready.state, **common)

    measured = [Decisions(threshold=chosen.threshold), "stability"]
    sets = {"train": train, "holdout": problem.holdout, "test": problem.test}
    scores = evaluate(models, task, **sets, scenario=case, metrics=measured, seed=chosen.seed)
    said = f"Forgotten: a cardholder with {len(forget)} of {len(train)} transactions."
    print(f"{said} Fraud is decided above {chosen.threshold:g}.\n")
    heads = ["model", "embedding row, from that before training", *NUMBERS]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    drawn = zoo.embedding_row(start, person)
    rows = {"original": original, "retrained": models["retrained"][0]} | {n: models[n].model for n in METHODS}
    for name, model in rows.items():
        moved = (zoo.embedding_row(model, person) - drawn).norm()
        print(f"| {name} | {moved:.3f} | " + " | ".join(shown(scores[name][n]) for n in NUMBERS.values()) + " |")


def shown(value):
    """Return a number with its interval, or a dash where there is none."""
    return f"{value.x:.4f} ({value.low:.4f} to {value.high:.4f})" if isinstance(value, Value) else "–"


if __name__ == "__main__":
    main()
