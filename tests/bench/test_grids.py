"""Grids that come with the package: each is read whole, and runs from end to end on generated data of its layout."""

import io
import re
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers
from PIL import Image as Pillow
from torch import nn

from expunge import methods, zoo
from expunge.bench import collect, grid, runner
from expunge.bench.grid import Place
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.metric import Value
from expunge.recipe import Recipe
from expunge.scenario import Scenario
from expunge.task import Classification
from expunge.zoo import named
from expunge.zoo.networks import BASE
from hourly import lines, put

FOLDER = Path(__file__).parents[2] / "benchmarks" / "grids"
GRIDS = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
SIDES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "fashion_mnist": (28, 28), "orl_faces": (112, 92)}
EACH = {"ag_news": 30, "cifar10": 12, "cifar100": 2, "fashion_mnist": 12, "orl_faces": 3}  # samples of a class
LARGE = ("digits", "digits_value", "digits_private", "ett", "ett_mean", "cards")  # whole, so cut to a limit
NAMES = {  # of the classes as published, in the order of their indices
    "ag_news": "World Sports Business Sci/Tech",
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly "
    "camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm",
    "fashion_mnist": "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot",
    "orl_faces": " ".join(f"s{i}" for i in range(1, 41)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a data folder: tiny data sets in the published layout, and a tiny ViT in the place of the pretrained."""
    found = tmp_path_factory.mktemp("data")
    for name, each in EACH.items():
        store(found, name, each)
    put(found, lines()[0])
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(found / "models" / BASE)
    return found


def store(root, name, each):
    spec, random = named.NAMED[name], np.random.default_rng(0)
    labels = [c for _ in range(each) for c in range(spec.classes)]
    inputs, draw = (datasets.Image(), image) if name in SIDES else (datasets.Value("string"), text)
    kinds = {spec.inputs: inputs, spec.label: datasets.ClassLabel(names=NAMES[name].split())}
    (root / name).mkdir()
    for split in ("train", "test"):
        drawn = {spec.inputs: [draw(random, name) for _ in labels], spec.label: labels}
        table = datasets.Dataset.from_dict(drawn, features=datasets.Features(kinds))
        table.to_parquet(root / name / f"{split}-00000-of-00001.parquet")


def image(random, name):
    out = io.BytesIO()
    Pillow.fromarray(random.integers(0, 256, SIDES[name], dtype=np.uint8)).save(out, "PNG", compress_level=0)
    return {"bytes": out.getvalue(), "path": None}


def text(random, name):
    return " ".join(f"word{n}" for n in random.integers(0, 500, 12))


def shrunk(whole, network=None, only=None):
    """Return a grid with the same requests and methods, but one seed, an epoch, and no more data than is needed.

    With a network of its own, grids on the same data share most of their cells in one store; data that it does not fit,
    such as texts and series, keep theirs.
    """
    places = {}
    for at, cell in list(whole.places.items())[:only]:
        recipe = Recipe(epochs=1, schedule="constant", lr=0.01).to_json()
        name = cell.data["name"]
        data = {"name": name} | ({"limit": 130} if name in LARGE else {})
        measures = {**cell.measures, "metrics": ["accuracy", "cost", "membership"], "attacks": ["entropy_lr"]}
        own = network if network and zoo.networks.fits(network, zoo.known(name).shape) else cell.network
        places[at] = replace(cell, recipe=recipe, data=data, measures=measures, network=own)
    less = {"epochs": 1, "sparsity": 0.5}  # so little training leaves layers that 95 % would empty
    loose = {
        "least": 0.5,
        "level": 1.0,
        "redraws": 2,
        "clusters": 3,
        "donor": 0,
        "rank": "network",
    }  # noise has few concepts
    fewer = {name: s | {k: v for k, v in less.items() if s.get(k)} for name, s in whole.methods.items()}
    fewer = {name: s | loose if s["name"] == "concept_poisoning" else s for name, s in fewer.items()}
    return replace(whole, places=places, methods=fewer, seeds=(0,))


def run(asked, root, folder):
    found = Store.open(folder)
    work = runner.plan([task for cell in asked.cells() for task in cell.results()], found)
    told = runner.run(work, found, runner.InProcess(Setting(found.path, asked.projects, data_dir=root)))
    return found, told


def check_whole(asked, found, told):
    """Every method has a row at every place, or says why it does not apply."""
    assert [found.failure(task)["traceback"] for task in told.failed] == []
    assert not told.blocked
    numbers = dict.fromkeys(n for entry in asked.file.published for v in entry.values.values() for n in v)
    for group in collect.groups(asked, found):
        rows = group.runs[0].values
        assert set(rows) >= {"original", "retrained", "no_op", *asked.methods} - set(group.declined)
        for name in numbers:
            assert isinstance(rows["retrained"][name], Value), name


@pytest.mark.parametrize("name", GRIDS)
def test_runs_from_end_to_end_on_generated_data(name, root, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "grids"  # one for all
    asked = shrunk(grid.load(GRIDS[name]), network="mlp")
    check_whole(asked, *run(asked, root, folder))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if "sub" in n else [pytest.mark.slow]) for n in GRIDS if n.endswith("_vit")],
)
def test_the_pretrained_network_runs(name, root, tmp_path):
    asked = shrunk(grid.load(GRIDS[name]), only=1)
    assert {cell.network for cell in asked.places.values()} == {BASE}
    check_whole(asked, *run(asked, root, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n, path in GRIDS.items() if "resnet18" in {at.network for at in grid.load(path).places}]
)
def test_the_large_network_runs(name, root, tmp_path):
    asked = shrunk(grid.load(GRIDS[name]), only=1)
    assert {cell.network for cell in asked.places.values()} == {"resnet18"}
    check_whole(asked, *run(asked, root, tmp_path))


def test_without_the_pretrained_network_it_is_said(root, tmp_path, monkeypatch):
    def nothing(place, **_):
        raise OSError(f"couldn't connect to load {place}")

    monkeypatch.setattr(transformers.ViTForImageClassification, "from_pretrained", nothing)
    asked = shrunk(grid.load(GRIDS["cifar10_random_vit"]), only=1)
    found, told = run(asked, root, tmp_path)
    assert [task.stage for task in told.failed] == ["trained"]
    said = collect.groups(asked, found)[0].gaps[0, "ssd"]
    assert said.status == "blocked"
    assert "Expected the pretrained network" in said.reason
    assert "put the checkpoint in models/vit-base-patch16-224 of the folder named by --data-dir" in said.reason


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_without_data_is_not_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "none"))
    asked = grid.load(GRIDS[name])
    groups = collect.groups(replace(asked, seeds=(0,)), Store.open(tmp_path / "store"))
    assert len(groups) >= len(asked.places)
    assert {(gap.status, gap.reason) for group in groups for gap in group.gaps.values()} == {("missing", "not run yet")}
    assert not any(group.runs for group in groups)


def test_what_is_forgotten_is_what_the_paper_forgot(root):
    found = {}
    for name in ("cifar100_class", "cifar20_class", "cifar20_subclass", "cifar10_class"):
        asked = grid.load(GRIDS[name])
        for at, cell in asked.places.items():
            problem = zoo.load(cell.data["name"], "mlp", data_dir=root)
            train, case = cell.asked.draw(problem, 0)
            column = "fine_name" if "fine_name" in train.columns else "label"
            forgotten = set(train.subset(case.forget).column(column))
            found[name, at.scenario] = forgotten
            rest = set(train.without(case.forget).column(column))
            assert not forgotten & rest
    assert found == {
        ("cifar100_class", "rocket"): {"rocket"},
        ("cifar100_class", "mushroom"): {"mushroom"},
        ("cifar20_class", "vehicles 2"): {"lawn_mower", "rocket", "streetcar", "tank", "tractor"},
        ("cifar20_class", "fruit and vegetables"): {"apple", "mushroom", "orange", "pear", "sweet_pepper"},
        ("cifar20_subclass", "rocket"): {"rocket"},
        ("cifar20_subclass", "sea"): {"sea"},
        ("cifar10_class", "cat"): {"cat"},
        ("cifar10_class", "airplane"): {"airplane"},
    }


@pytest.mark.parametrize("name", [n for n in GRIDS if n.endswith("_vit")])
def test_a_vit_grid_forgets_what_its_twin_does(name):
    one, other = (grid.load(GRIDS[n]) for n in (name, name.removesuffix("_vit")))
    asked = [{at.scenario: cell.request for at, cell in found.places.items()} for found in (one, other)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("name", "epochs", "milestones", "alpha", "dampening", "batch"),
    [
        ("cifar10_random", 20, [8, 12, 16], 10, 1, 128),
        ("cifar10_random_vit", 8, [7], 10, 1, 128),
        ("cifar20_class", 40, [15, 30, 35], 10, 1, 64),
        ("cifar20_class_vit", 9, [8], 5, 1, 64),
        ("cifar100_class", 200, [60, 120, 160], 10, 1, 64),
        ("cifar100_class_vit", 8, [7], 5, 1, 64),
        ("cifar20_subclass", 40, [15, 30, 35], 10, 1, 64),
        ("cifar20_subclass_vit", 9, [8], 25, 1, 64),
        ("orl_faces", 200, [60, 120, 160], 50, 0.1, 64),
    ],
)
def test_the_published_settings(name, epochs, milestones, alpha, dampening, batch):
    asked = grid.load(GRIDS[name])
    for cell in asked.places.values():
        recipe = cell.recipe
        assert (recipe["epochs"], recipe["milestones"], recipe["schedule"]) == (epochs, milestones, "multistep")
        assert (recipe["batch_size"], recipe["lr"], recipe["gamma"], recipe["warmup"]) == (64, 0.1, 0.2, 1)
        assert recipe["flip"]
    ssd = asked.methods["ssd published"]
    assert (ssd["importance"], ssd["alpha"], ssd["dampening"], ssd["batch"]) == ("batch_mean", alpha, dampening, batch)
    assert ssd["order"] == ("data" if "random" in name else "label")
    finetune = asked.methods["finetune"]
    assert (finetune["epochs"], finetune["lr"], finetune["momentum"]) == (5, 0.02, 0.9)


def published(name, scenario, table):
    asked = grid.load(GRIDS[name]).file.published
    found = [p for p in asked if p.scenario == scenario and p.source.endswith(f"Table {table}")]
    assert len(found) == 1
    return found[0]


def test_published_numbers_stand_where_they_belong():
    """A number of each table, as printed: percent; spreads of the attack as fractions."""
    by_class = published("cifar100_class", "rocket", 2).values
    assert by_class["retrained"]["accuracy/test_retain"] == [0.7283, 0.0042]
    assert by_class["original"]["accuracy/test_forget"] == [0.8090]
    assert by_class["ssd published"]["membership/entropy_lr"] == [0.022]
    assert by_class["retrained"]["membership/entropy_lr"] == [0.0104, 0.0041]  # 0.41 is in percent
    assert by_class["unsir"]["accuracy/test_forget"] == [0.2866, 0.0498]
    assert published("cifar100_class", "rocket", 1).values["fisher_forgetting"]["accuracy/test_retain"] == [
        0.0118,
        0.0006,
    ]
    vit = published("cifar100_class_vit", "mushroom", 2).values
    assert vit["ssd published"] == {
        "accuracy/test_retain": [0.8882],
        "accuracy/test_forget": [0.0],
        "membership/entropy_lr": [0.038],
    }
    coarse = published("cifar20_class", "fruit and vegetables", 3).values
    assert coarse["finetune"]["accuracy/test_retain"] == [0.7142, 0.0132]
    assert coarse["ssd published"]["membership/entropy_lr"] == [0.1696]
    faces = published("orl_faces", "any person", 4).values
    assert faces["original"]["accuracy/forget"] == [0.9784, 0.0199]
    assert faces["original"]["membership/entropy_lr"] == [0.3438, 0.23]
    sea = published("cifar20_subclass", "sea", 5).values
    assert sea["retrained"]["accuracy/test_forget"] == [0.9147, 0.0192]
    assert sea["ssd published"]["accuracy/test_forget"] == [0.7535]
    for count in (83, 100):
        random = published("cifar10_random", f"random {count}", 6)
        assert random.values["ssd published"]["accuracy/test"] == [0.8868, 0.0336]
        assert random.values["retrained"]["accuracy/forget"] == [0.941, 0.02]
        assert random.values["original"]["membership/entropy_lr"] == [0.7578, 0.04]
        assert "the released code draws 83" in random.differences[-1]


@pytest.mark.parametrize("name", GRIDS)
def test_published_numbers_name_their_source_and_what_differs(name):
    asked = grid.load(GRIDS[name])
    for entry in asked.file.published:
        assert "Foster" in entry.source
        assert any("retrained model keeps all weights" in text for text in entry.differences)  # it saw the forget set
        assert all(text.endswith(".") and "  " not in text and "\n" not in text for text in entry.differences)
        assert {"original", "retrained", "ssd published"} <= set(entry.values) or set(entry.values) == {
            "fisher_forgetting"
        }
        assert not any(spread == [0.0] for v in entry.values.values() for _, *spread in v.values())
    papers = name.startswith(("cifar", "orl")) and not name.endswith("reduced") and name != "cifar10_class"
    assert {Place(p.data, p.network, p.scenario) for p in asked.file.published} == (
        {at for at in asked.places if not at.scenario.startswith("person ")} if papers else set()
    )


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_these_compare_every_method_of_classification(name):
    """Who adds a method adds it to these grids; only its own cells are computed."""
    case = Scenario(train=("a", "b"), forget=("a",), kind="class", target=0)

    def applies(method):
        cls = methods.load(method)
        return not methods.build({"name": method, **cls.example}).declines(Classification(), case, nn.Identity())

    alone = ("retrain", "fresh_rows")  # in every table; without embeddings the same as the method that it runs
    want = {m for m in methods.names() if m not in alone and applies(m)}
    assert {settings["name"] for settings in grid.load(GRIDS[name]).methods.values()} == want


def test_the_readme_lists_every_grid():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`(\w+)\.toml`\]\(\1\.toml\)", text, re.MULTILINE) == sorted(GRIDS)
