"""Grid files: what they ask for, and that every fault is named with its line."""

import json
import re
from dataclasses import replace

import pytest

from expunge import zoo
from expunge.bench import grid as grids
from expunge.bench.cell import Cell
from expunge.bench.grid import TUNED_KIND, TUNED_SCHEMA, Grid, Place
from expunge.errors import CorruptArtefact, UserError
from expunge.files import write_document
from expunge.methods import build
from expunge.trial import Request

HEAD = """title = "tiny"
seeds = 2
data = ["digits"]
scenarios = ["class=3"]
"""
METHODS = 'methods = ["ssd"]\n'


def lined(said):
    """Return a sentence in which ``@3`` stands for the third line of the file."""
    return re.sub(r"@(\d+)", r"in line \1 of grid.toml", said)


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a grid file and reads it."""

    def read(text):
        (tmp_path / "grid.toml").write_text(text, encoding="utf-8")
        return grids.load(tmp_path / "grid.toml")

    return read


@pytest.fixture
def refused(load):
    """Return a function that holds the sentence about a grid file's fault against what it should say."""

    def check(text, said):
        with pytest.raises(UserError) as caught:
            load(text)
        assert str(caught.value) == lined(said)

    return check


def test_cells_are_the_product_of_all_that_is_named(load):
    found = load(
        'seeds = [3, 1]\nmetrics = ["loss", "accuracy"]\n'
        '[data.digits]\n[data.few]\nname = "digits"\nlimit = 100\n'
        '[networks.convnet]\n[networks.small]\nname = "mlp"\nrecipe = { epochs = 2, milestones = [1] }\n'
        '[scenarios]\nthrees = "class=3"\nsome = "random=0.05"\n'
        '[methods.finetune]\n[methods."ssd, α = 5"]\nname = "ssd"\nalpha = 5\n'
    )
    assert isinstance(found, Grid)
    assert found.title == found.name == "grid"
    assert found.seeds == (3, 1)
    assert list(found.methods) == ["finetune", "ssd, α = 5"]
    assert found.methods["ssd, α = 5"] == build({"name": "ssd", "alpha": 5}).settings()
    assert [str(at) for at in found.places][:3] == [
        "digits, convnet, threes",
        "digits, convnet, some",
        "digits, small, threes",
    ]
    cells = list(found.cells())
    assert len(cells) == len(found) == 2 * 2 * 2 * 2 * 3
    assert [(c.seed, dict(c.method).get("name")) for c in cells[:4]] == [
        (3, None),
        (3, "finetune"),
        (3, "ssd"),
        (1, None),
    ]
    one = found.places[Place("few", "small", "some")]
    own = zoo.recipe("digits", "mlp").to_json()
    assert one == Cell(
        data={"name": "digits", "limit": 100},
        network="mlp",
        recipe={**own, "epochs": 2, "milestones": [1]},
        request={"kind": "random", "value": 0.05},
        seed=0,
        measures={"retrained": 2, "metrics": ["accuracy", "loss"], "attacks": []},
    )


def test_what_is_not_said_is_taken_from_the_data_and_the_registries(load):
    found = load('data = ["digits", "fashion_mnist"]\nscenarios = ["class=3", "random=100"]\n' + METHODS)
    assert [str(at) for at in found.places] == [
        f"{data}, convnet, {request}" for data in ("digits", "fashion_mnist") for request in ("class 3", "random 100")
    ]
    assert found.seeds == tuple(range(10))
    measures = next(found.cells()).measures
    assert {"accuracy", "membership", "cost"} <= set(measures["metrics"])
    assert not {"relearn", "robustness"} & set(measures["metrics"])  # they train
    assert "entropy_lr" in measures["attacks"]
    assert not {"lira", "rmia"} & set(measures["attacks"])  # which need shadow models
    assert measures["retrained"] == 2


def test_metrics_have_settings_and_only_what_is_measured_depends_on_them(load):
    text = HEAD.replace("digits", "cards") + METHODS
    text = text.replace('scenarios = ["class=3"', 'scenarios = ["class=1"')

    def cell(metrics):
        return next(c for c in load(metrics + text).cells() if c.method)

    plain, same, other = (
        cell('metrics = ["decisions", "loss"]\n'),
        cell("metrics = {loss = {}, decisions = {threshold = 0.5}}\n"),
        cell("metrics = {loss = {}, decisions = {threshold = 0.2}}\n"),
    )
    assert plain == same
    assert other.measures == plain.measures | {"settings": {"decisions": {"threshold": 0.2}}}
    for stage in ("trained", "drawn", "prepared", "unlearned"):
        assert plain.unmeasured.task(stage) == other.unmeasured.task(stage)
    assert plain.task("measured") != other.task("measured")
    assert plain.shared.task("reference") != other.shared.task("reference")


def test_no_data_is_opened(load, monkeypatch, tmp_path):
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "nowhere"))
    assert len(load(HEAD.replace("digits", "cifar100") + METHODS)) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds", "sedes", "known keys @2, got 'sedes': did you mean 'seeds'."),
        ("data", "dta", "known keys @3, got 'dta': did you mean 'data'."),
        ('data = ["digits"]\n', "", "data in grid.toml, got none: add it."),
        (
            '["digits"]',
            "3",
            "data @3 to be right, got 3 (a list of texts, or a table, was expected): mend the value.",
        ),
        (
            '["digits"]',
            '["digits", 3]',
            "data @3 to be right, got ['digits', 3] (a list of texts, or a table, was expected): mend the value.",
        ),
        (
            '["digits"]',
            '["digits", "digits"]',
            "data @3 to be right, got ['digits', 'digits'] ('digits' more than once): mend the value.",
        ),
        (
            '["digits"]',
            "[]",
            "data @3 to be right, got [] (at least one was expected): mend the value.",
        ),
        (
            '["class=3"]',
            "{}",
            "scenarios @4 to be right, got {} (at least one was expected): mend the value.",
        ),
        (
            '["class=3"]',
            '{" " = "class=3"}',
            "scenarios @4 to be right, got {' ': 'class=3'} (the name ' ' cannot be shown in a table): mend the value.",
        ),
        (
            "seeds = 2",
            "seeds = 0",
            "seeds @2 to be right, got 0 (a number of seeds from 1 to 1000, or a list of seeds, was "
            "expected): mend the value.",
        ),
        (
            "seeds = 2",
            "seeds = true",
            "seeds @2 to be right, got True (a number of seeds from 1 to 1000, or a list of seeds, was "
            "expected): mend the value.",
        ),
        (
            "seeds = 2",
            "seeds = [1, 1]",
            "seeds @2 to be right, got [1, 1] (a list of seeds holds whole numbers of 0 or more, each "
            "once): mend the value.",
        ),
        (
            "seeds = 2",
            "seeds = []",
            "seeds @2 to be right, got [] (a list of seeds holds whole numbers of 0 or more, each "
            "once): mend the value.",
        ),
        (
            '"tiny"',
            "5",
            "title @1 to be right, got 5 (should be a valid string): mend the value.",
        ),
        ("digits", "digit", "a known data set @3, got 'digit': did you mean 'digits'."),
        (
            "class=3",
            "klass=3",
            "a request KIND=VALUE or KIND:COLUMN=VALUE @4, got 'klass=3': did you mean 'class'.",
        ),
        (
            "class=3",
            "random=2.5",
            "a number of samples of 1 or more, or a share in (0, 1) @4, got 2.5: write for example random=0.05.",
        ),
        (
            "class=3",
            "class=10",
            "classes of digits from 0 to 9 @4, got 10 in 'class 10': choose among them.",
        ),
        (
            "class=3",
            "sequential:class=3+12",
            "classes of digits from 0 to 9 @4, got 12 in 'sequential classes 3, 12': choose among them.",
        ),
        (
            "class=3",
            "poison=0.1,target=11",
            "classes of digits from 0 to 9 @4, got 11 in 'poison 10 % to class 11': choose among them.",
        ),
        (
            '"class=3"',
            '"random=0.05", "random=5e-2"',
            "requests of different names @4, got 'random 5 %' twice: remove one of them.",
        ),
    ],
)
def test_faults_of_keys_values_and_names(refused, old, new, said):
    assert old in HEAD
    refused(HEAD.replace(old, new) + METHODS, f"Expected {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "methods in grid.toml, got none: add it."),
        ('methods = ["ssd", "sdd"]', "a known method @5, got 'sdd': did you mean 'ssd'."),
        (
            "[methods.a]\nname = 'finetune'\n[methods.b]\nname = 'sdd'",
            "a known method @7, got 'sdd': did you mean 'ssd'.",
        ),
        (
            '[methods.ssd]\nalpha = 3\n[methods."ssd 5"]\nname = "ssd"\nalpa = 5',
            "a field of ssd @9, got 'alpa': did you mean 'alpha'.",
        ),
        (
            '[methods.ssd]\ndampening = 1\nalpha = "much"',
            "a value that fits ssd.alpha @7, got 'much' (input should be a valid number, unable to "
            "parse string as a number): see expunge methods ssd.",
        ),
        (
            "[methods.ssd]\ndampening = 1\nalpha = -3",
            "ssd.alpha of 0 or more, or 'auto' @7, got -3.0: give a finite number in that range.",
        ),
        (
            "[methods.ssd]\nalpha = 1979-05-27",
            "methods.ssd @5 to be right, got {'alpha': datetime.date(1979, 5, 27)} (alpha holds a date or "
            "time; write a number or a text): mend the value.",
        ),
        (
            '[methods.finetune]\n[methods.ssd]\n[methods."ssd 5"]\nname = "ssd"',
            "methods that differ @7, got ssd, ssd 5 alike: remove one of them.",
        ),
        (
            'methods = ["ssd", "ssd"]',
            "methods @5 to be right, got ['ssd', 'ssd'] ('ssd' more than once): mend the value.",
        ),
        *(
            (
                f'methods = ["ssd", "{name}"]',
                f"a method to compare with retraining @5, got '{name}': leave it out: original, "
                "retrained models and controls stand in every table.",
            )
            for name in ("retrain", "no_op", "head_mask", "original", "retrained")
        ),
        (
            '[methods."retrained (other seed)"]\nname = "ssd"',
            "a method to compare with retraining @5, got 'retrained (other seed)': leave it out: "
            "original, retrained models and controls stand in every table.",
        ),
    ],
)
def test_faults_of_methods(refused, text, said):
    refused(HEAD + text + "\n", f"Expected {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("networks = ['resnet']", "a known network @6, got 'resnet': did you mean 'resnet18'."),
        (
            "networks = ['text']",
            "texts for text @6, got shape (1, 8, 8): take another network: "
            "convnet, convnet4, mlp, resnet18, vit, vit_public.",
        ),
        (
            "[networks.mlp]\nrecipe = {epoch = 3}",
            "known keys @7, got 'networks.mlp.recipe.epoch': did you mean 'epochs'.",
        ),
        (
            "[networks.mlp.recipe]\nlr = 0.1\nepochs = -3",
            "Recipe.epochs of 0 or more @8, got -3: give a number in that range.",
        ),
        (
            "[networks.mlp]\nrecpe = {}",
            "known keys @7, got 'networks.mlp.recpe': did you mean 'recipe'.",
        ),
        (
            "metrics = ['accurcy']",
            "a known name in metrics @6, got 'accurcy': did you mean 'accuracy'.",
        ),
        ("attacks = ['lss']", "a known name in attacks @6, got 'lss': did you mean 'loss'."),
        (
            "metrics = ['loss']\nattacks = ['loss']",
            "'membership' among the metrics @7, got none: add it, or leave attacks out.",
        ),
        (
            "retrained = 1",
            "retrained @6 to be right, got 1 (should be greater than or equal to 2): mend the value.",
        ),
        ("[resources]\ngpu = 1", "known keys @7, got 'resources.gpu': did you mean 'gpus'."),
        (
            "[resources]\ncpus = 0",
            "resources.cpus @7 to be right, got 0 (should be greater than 0): mend the value.",
        ),
        (
            "[runtime]\nprecision = 'half'",
            "runtime.precision @7 to be right, got 'half' (should be 'full' or 'bf16'): mend the value.",
        ),
    ],
)
def test_faults_of_networks_measures_and_machines(refused, text, said):
    refused(HEAD + METHODS + text + "\n", f"Expected {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[data.digits]\nlimt = 100",
            "known keys @5, got 'data.digits.limt': did you mean 'limit'.",
        ),
        (
            "[data.digits]\nlimit = 'all'",
            "data.digits.limit @5 to be right, got 'all' (should be a valid integer): mend the value.",
        ),
        (
            "[data.cifar100]\nlimit = 50",
            "a limit of at least 100 samples, one a class @5, got 50: raise it.",
        ),
        ("[data.mine]\nname = 'digit'", "a known data set @4, got 'digit': did you mean 'digits'."),
        (
            "[data.mine]\nproject = 'expunge.toml'\nlimit = 10",
            "a project or a named data set @4, got project, and name or limit: remove one of them.",
        ),
    ],
)
def test_faults_of_data(refused, text, said):
    refused('scenarios = ["class=3"]\nseeds = 2\n' + METHODS + text + "\n", f"Expected {said}")


def test_a_file_that_is_none(load, tmp_path):
    with pytest.raises(CorruptArtefact, match=r"TOML in .*grid.toml, got Invalid value \(at line 1, column 5\)"):
        load("a = \n")
    with pytest.raises(
        UserError, match="a grid file .*none.toml, got nothing there: write one, or take one of benchmarks/grids"
    ):
        grids.load(tmp_path / "none.toml")


BLOCK = """[[published]]
source = "A. Author, A title, 2024, Table 1"
data = "digits"
network = "convnet"
scenario = "class 3"
differences = ["Another network."]
[published.values]
ssd = { "accuracy/test" = [0.9, 0.01] }
unsir = { "accuracy/test" = [0.8] }
"""


def test_published_numbers_may_be_of_models_that_the_grid_lacks(load):
    found = load(HEAD + METHODS + 'differences = ["Another data set."]\n' + BLOCK + BLOCK.replace("Table 1", "Table 2"))
    first, second = found.file.published
    assert first.values == {"ssd": {"accuracy/test": [0.9, 0.01]}, "unsir": {"accuracy/test": [0.8]}}
    assert first.differences == second.differences == ["Another data set.", "Another network."]
    assert list(found.methods) == ["ssd"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "class 3",
            "class=3",
            "numbers of a place in the grid @15, got digits, convnet, class=3: choose among digits, convnet, class 3.",
        ),
        (
            "unsir",
            '"UNSIR!"',
            "the name of a model @23, got 'UNSIR!': write original, retrained, a name of the grid, or "
            "a method's name such as bad_teacher.",
        ),
        (
            'unsir = { "accuracy/test"',
            'unsir = { "accuracy/tset"',
            "a number that the grid measures @23, got 'accuracy/tset': did you mean 'accuracy/test'.",
        ),
        (
            "0.9, 0.01",
            "90, 1",
            "accuracy/test in [0, 1], and a spread of 0 or more @22, got [90.0, 1.0]: write 74 % as 0.74.",
        ),
        (
            "[0.8]",
            "[0.8, -0.1]",
            "accuracy/test in [0, 1], and a spread of 0 or more @23, got [0.8, -0.1]: write 74 % as 0.74.",
        ),
        (
            "[0.8]",
            "0.8",
            "published.values.unsir.accuracy/test @23 to be right, got 0.8 (should be a valid list): mend the value.",
        ),
        (
            "Table 1",
            "Table 0",
            "each published number once @22, got accuracy/test twice: remove one of them.",
        ),
        (
            'source = "A. Author, A title, 2024, Table 1"\n',
            "",
            "published.source @15, got none: add it.",
        ),
        (
            "differences",
            "difference",
            "known keys @20, got 'published.difference': did you mean 'differences'.",
        ),
    ],
)
def test_faults_of_published_numbers_are_named_in_their_own_table(refused, old, new, said):
    assert old in BLOCK
    refused(HEAD + METHODS + BLOCK.replace("Table 1", "Table 0") + BLOCK.replace(old, new), f"Expected {said}")


@pytest.mark.parametrize(
    ("measured", "number", "remedy"),
    [
        ('metrics = ["loss"]', "accuracy/test", "add 'accuracy' to metrics, or leave it out"),
        ('attacks = ["loss"]', "membership/entropy_lr", "add 'entropy_lr' to attacks, or leave it out"),
        ('metrics = ["loss"]', "loss/tst", "did you mean 'loss/test'"),
    ],
)
def test_published_numbers_that_the_grid_does_not_measure(refused, measured, number, remedy):
    text = f"{HEAD}{METHODS}{measured}\n{BLOCK}".replace("accuracy/test", number)
    refused(text, f"Expected a number that the grid measures @14, got '{number}': {remedy}.")


PROJECT = """[model]
network = "{network}"
weights = "train"
base = "random"
[data]
name = "digits"
limit = {limit}
[recipe]
epochs = 2
"""


@pytest.fixture
def project(tmp_path):
    def write(network="mlp", limit=200, name="mine.toml"):
        (tmp_path / "projects").mkdir(exist_ok=True)
        file = tmp_path / "projects" / name
        file.write_text(PROJECT.format(network=network, limit=limit), encoding="utf-8")
        return f'seeds = 1\nscenarios = ["class=3"]\n{METHODS}[data.mine]\nproject = "projects/{name}"\n'

    return write


def test_a_project_brings_data_network_and_recipe(load, project, tmp_path):
    found = load(project())
    assert [str(at) for at in found.places] == ["mine, mlp, class 3"]
    cell = next(found.cells())
    assert cell.recipe["epochs"] == 2
    assert set(cell.data) == {"project", "digest"}
    assert found.projects == {cell.data["digest"]: tmp_path / "projects" / "mine.toml"}
    other = next(load(project(limit=300)).cells())
    assert other.data["digest"] != cell.data["digest"]  # another project under the same name
    same = next(load(project()).cells())
    assert same == cell


def test_faults_of_projects(load, refused, project):
    text = project()
    refused(
        text + "[networks.convnet]\n",
        "Expected a project with its own network @6, got networks beside the project mine.toml: remove one of them.",
    )
    with pytest.raises(
        UserError, match=lined("a project file .*projects/other.toml @5, got nothing there: name it from")
    ):
        load(text.replace("mine.toml", "other.toml"))


def tuned(folder, **method):
    said = {"on": [{"data": "fashion_mnist"}], "trials": 50, "seeds": [100], "objective": "retrained"}
    write_document(folder / "ssd.json", TUNED_KIND, TUNED_SCHEMA, {"method": method, **said})
    return f'{HEAD}[methods."ssd, tuned"]\nname = "ssd"\ntuned = "ssd.json"\n'


def test_tuned_settings_are_read_from_their_file(load, tmp_path):
    text = tuned(tmp_path, name="ssd", alpha=2.5, dampening=0.5)
    found = load(text)
    settings = found.methods["ssd, tuned"]
    assert (settings["alpha"], settings["dampening"]) == (2.5, 0.5)
    assert "tuned" not in settings
    assert found.tuned["ssd, tuned"]["on"] == [{"data": "fashion_mnist"}]
    assert found.tuned["ssd, tuned"]["method"]["alpha"] == 2.5


def test_a_field_beside_a_tuned_file_would_be_told_as_tuned(load, tmp_path):
    text = tuned(tmp_path, name="ssd", alpha=2.5, dampening=0.5)
    with pytest.raises(UserError, match="fields from the file of a tuning alone .*, got dampening beside it"):
        load(text + "dampening = 0.25\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.unlink(), "a file .*ssd.json @7, got none there: check the path"),
        (lambda f: f.write_text("{"), "a JSON document in .*ssd.json @7"),
        (
            lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "method": {"name": "lfssd"}})),
            "a file in which ssd was tuned @7, got 'lfssd': name ssd, tuned's file",
        ),
        (
            lambda f: f.write_text(json.dumps({"kind": TUNED_KIND, "schema": 1})),
            "a file in which ssd was tuned @7, got no method",
        ),
        (
            lambda f: f.write_text(json.dumps({k: v for k, v in json.loads(f.read_text()).items() if k != "trials"})),
            "a file that expunge tune wrote, ssd.json @7, got none of trials: tune again",
        ),
        (
            lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "schema": TUNED_SCHEMA + 1})),
            f"schema {TUNED_SCHEMA} or older in .*ssd.json @7, got {TUNED_SCHEMA + 1}: update expunge",
        ),
    ],
)
def test_faults_of_tuned_files(load, tmp_path, change, said):
    text = tuned(tmp_path, name="ssd", alpha=2.5)
    change(tmp_path / "ssd.json")
    with pytest.raises(UserError, match=lined(said)):
        load(text)


def test_the_name_of_a_tuned_file_is_a_text(refused):
    refused(
        HEAD + "[methods.ssd]\ntuned = 5\n",
        "Expected the name of a file that expunge tune wrote @6, got 5: write tuned = 'FILE.json'.",
    )


def test_a_line_is_told_in_any_layout(load):
    """Tables with spaces and quotes in their names, dotted keys, inline tables."""
    for text, line in (
        ("[methods]\nssd = {alpha = -1}\n", 6),
        ('[ methods . "my ssd" ]\nname = "ssd"\n"alpha" = -1\n', 7),
        ("methods.ssd.alpha = -1\n", 5),
    ):
        with pytest.raises(UserError) as caught:
            load(HEAD + text)
        assert re.search(rf"in line {line} of grid.toml, got -1", str(caught.value)), (text, str(caught.value))


@pytest.mark.parametrize("name", ["floor", "original", "retrained (other seed)", "retrained (other seed) 2"])
def test_a_method_cannot_take_the_name_of_a_row(load, name):
    with pytest.raises(UserError, match="a method to compare with retraining"):
        load(f'{HEAD}[methods."{name}"]\nname = "ssd"\n')


def test_projects_that_read_alike_and_name_other_data_share_no_cell(tmp_path):
    text = '[model]\nnetwork = "net:build"\n[data]\ntrain = "train.csv"\ntarget = "y"\n[recipe]\nepochs = 1\n'
    for name, row in (("a", "1.0,0\n"), ("b", "2.0,0\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "expunge.toml").write_text(text)
        (tmp_path / name / "net.py").write_text("def build(): ...\n")
        (tmp_path / name / "train.csv").write_text("x,y\n" + row)
    names = "".join(f'[data.{n}]\nproject = "{n}/expunge.toml"\n' for n in "ab")
    (tmp_path / "grid.toml").write_text(f'scenarios = ["random=0.5"]\nmethods = ["ssd"]\n{names}')

    def keys():
        return [cell.data["digest"] for cell in grids.load(tmp_path / "grid.toml").places.values()]

    one, other = keys()
    assert one != other
    (tmp_path / "b" / "train.csv").write_bytes((tmp_path / "a" / "train.csv").read_bytes())
    assert keys() == [one, one]
    (tmp_path / "b" / "net.py").write_text("def build(): return 1\n")
    assert keys()[1] != one


def test_precision_decides_a_result(load):
    text = HEAD + "[methods.ssd]\n"
    full, half = (
        next(iter(load(text + more).places.values())).results()[0] for more in ("", '[runtime]\nprecision = "bf16"\n')
    )
    assert full.key != half.key
    same = next(iter(load(text + '[runtime]\nprecision = "full"\nbatch_size = 8\n').places.values())).results()[0]
    assert same.key == full.key


@pytest.mark.parametrize(
    ("data", "request_", "said"),
    [
        ("digits", "random=1168", "1 to 1167 samples to forget @4, got 1168 of digits: give a number or a share"),
        ("digits", "random=0.9999", "1 to 1167 samples to forget @4, got 0.9999 of digits"),
        ("digits", "hardest=2000", "1 to 1167 samples to forget @4, got 2000 of digits"),
        ("digits", "mislabelled=0.9999", "1 to 1167 samples to forget @4, got 0.9999 of digits"),
        (
            "digits",
            "sequential=300,times=5",
            "at most 1167 samples to forget in all @4, got 5 × 300 of digits: ask for fewer requests, or for less each",
        ),
        ("digits", "sequential=0.2,times=5", "at most 1167 samples to forget in all @4, got 5 × 234 of digits"),
        ("digits", "single=1168", "at most 1167 samples to forget in all @4, got 1168 × 1 of digits"),
        (
            "digits",
            "ids=" + "+".join(map(str, range(1168))),
            "1 to 1167 samples to forget @4, got 1168 of digits: name fewer ids",
        ),
        ("cifar10", "random=50000", "1 to 49999 samples to forget @4, got 50000 of cifar10"),
        (
            "digits",
            "sequential:class=0+1+2+3+4+5+6+7+8+9",
            "a class of digits that stays @4, got all 10 to forget: leave one out",
        ),
        ("digits", "poison=0.05,patch=99", "a patch that fits on 8×8 images of digits @4, got 99, 0 from the edge"),
        ("cifar10", "poison=0.05,patch=31", "a patch that fits on 32×32 images of cifar10 @4, got 31, 2 from the edge"),
        ("ag_news", "poison=0.05", "images (C, H, W) of real numbers in ag_news for a trigger patch @4, got"),
        ("ag_news", "noised=0.05", "one input of real numbers in ag_news to put noise on @4, got torch.int64"),
        (
            "digits",
            "poison=0.95",
            "a share of samples to poison up to 0.902, that of the other classes of digits @4, got 0.95: poison",
        ),
        ("cifar20", "poison=0.96", "a share of samples to poison up to 0.95, that of the other classes of cifar20 @4"),
        (
            "digits",
            "subclass:fine=ship",
            "a column of digits @4, got 'fine': choose from superclass",
        ),
        ("digits", "subject:who=*", "a column of digits @4, got 'who': choose from superclass"),
        ("cifar20", "subclass:fine_nam=rocket", "a column of cifar20 @4, got 'fine_nam': did you mean 'fine_name'"),
        ("orl_faces", "subject:who=*", "a column of orl_faces @4, got 'who': choose from subject"),
        (
            "digits",
            "subclass:superclass=rund",
            "a value of 'superclass' in digits @4, got 'rund': choose among mixed, round, straight",
        ),
        ("cifar20", "subclass:superclass=*", "a value of 'superclass' in cifar20 @4, got '*': choose among aquatic"),
        ("cifar20", "subclass:fine=100", "a value of 'fine' in cifar20 @4, got '100': choose among 0, 1, 2"),
        *(
            ("diabetes", text, f"a request without classes of diabetes @4, got '{shown}': take another kind of request")
            for text, shown in (
                ("class=0", "class 0"),
                ("mislabelled=0.1", "mislabelled 10 %"),
                ("poison=0.1", "poison 10 % to class 0"),
            )
        ),
    ],
)
def test_requests_that_no_cell_could_draw(load, data, request_, said):
    text = HEAD.replace("digits", data).replace("class=3", request_)
    with pytest.raises(UserError, match=re.escape(f"Expected {lined(said)}")):
        load(text + METHODS)


def test_a_limit_bounds_what_may_be_asked_for(load):
    text = f'scenarios = ["random=100"]\n{METHODS}[data.few]\nname = "cifar10"\nlimit = '
    with pytest.raises(UserError, match=lined("1 to 99 samples to forget @1, got 100 of few")):
        load(text + "100\n")
    assert len(load(text + "101\n").places) == 1


def test_what_is_drawn_is_loaded_and_what_is_refused_is_not_drawn(load):
    """On data that is at hand the two agree."""
    asked = {
        "digits": (
            "random=1167 random=1168 hardest=1168 single=1167 single=1168 sequential=0.2,times=5 sequential=0.2,times=4"
            " sequential=233,times=5 sequential=234,times=5 mislabelled=0.9999 mislabelled=0.99 poison=0.9,target=3"
            " poison=0.902,target=3 poison=0.91,target=3 poison=0.1,patch=8 poison=0.1,patch=9 class=9,fraction=0.001"
            " noised=0.05 noised=0.9999 noised=0.99,deviation=2"
            " sequential:class=0+9 subclass:superclass=round subclass:superclass=* subject:superclass=* subject:sex=*"
            " ids=digits/701 ids=digits/701+digits/398"
        ),
        "diabetes": (
            "random=286 random=287 class=0 poison=0.1 noised=0.1 mislabelled=0.1 subject:sex=* subclass:sex=1"
            " ids=diabetes/61"
        ),
    }
    outcomes = set()
    for name, texts in asked.items():
        problem = zoo.load(name)
        for text in texts.split():
            request = Request.parse(text)
            try:  # the hardest are as many as random ones
                (replace(request, kind="random") if request.kind == "hardest" else request).draw(problem, 0)
                drawn = True
            except UserError:
                drawn = False
            try:
                load(HEAD.replace("digits", name).replace("class=3", text) + METHODS)
                loaded = True
            except UserError:
                loaded = False
            assert drawn == loaded, (name, text)
            outcomes.add((name, drawn))
    assert len(outcomes) == 4


@pytest.mark.parametrize(
    ("data", "text", "said"),
    [
        (
            "digits",
            "[networks.mlp]\nrecipe = {canaries = 5}",
            "a recipe without Recipe.canaries in a benchmark @7, got 5: leave it out: in a benchmark",
        ),
        (
            "digits",
            "[networks.mlp.recipe]\nlr = 0.1\nepochs = 0",
            "Recipe.epochs of 1 or more in a benchmark @8, got 0: give the epochs",
        ),
        (
            "diabetes",
            "[networks.mlp.recipe]\nlr = 0.1\nflip = true",
            "images (C, H, W) for Recipe.crop and Recipe.flip @8, got inputs (10,) in diabetes: leave crop",
        ),
        (
            "ag_news",
            "[networks.text]\nrecipe = {crop = 2}",
            "images (C, H, W) for Recipe.crop and Recipe.flip @7, got texts of 64 tokens in ag_news",
        ),
        ("diabetes", "networks = ['convnet']", "inputs of 3 dimensions for convnet @6, got shape (10,): take another"),
        ("digits", "networks = ['vit-base-patch16-224']", "images of shape (3, 224, 224) for vit-base-patch16-224 @6"),
    ],
)
def test_recipes_and_networks_that_no_cell_could_train(load, data, text, said):
    head = HEAD.replace("digits", data).replace("class=3", "random=0.1")
    with pytest.raises(UserError, match=re.escape(f"Expected {lined(said)}")):
        load(head + METHODS + text + "\n")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 2", "epochs = 0", "Recipe.epochs of 1 or more in a benchmark @5, got 0 in mine.toml"),
        ("epochs = 2", "epochs = -3", "Recipe.epochs of 0 or more @5, got -3 in mine.toml"),
        ("epochs = 2", "crop = 2", "images (C, H, W) for Recipe.crop and Recipe.flip @5, got inputs (10,) in mine"),
        ("class=3", "random=200", "1 to 199 samples to forget @2, got 200 of mine"),
        ("class=3", "subject:who=*", "a column of mine @2, got 'who': choose from superclass"),
        ("mlp", "text", "texts for text @5, got shape (1, 8, 8) in mine.toml"),
        ("digits", "digit", "a known data set in mine.toml @5, got 'digit': did you mean 'digits'"),
    ],
)
def test_a_project_on_a_named_data_set_is_held_to_the_same(load, project, tmp_path, old, new, said):
    text, file = (
        project().replace("class=3", "random=0.1" if old != "class=3" else new),
        tmp_path / "projects/mine.toml",
    )
    if new == "crop = 2":
        file.write_text(file.read_text().replace("digits", "diabetes"))
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(f"Expected {lined(said)}")):
        load(text)


def test_a_project_without_a_recipe_takes_that_of_its_named_data_set(load, project, tmp_path, monkeypatch):
    text, file = project(), tmp_path / "projects" / "mine.toml"
    file.write_text(file.read_text().partition("[recipe]")[0].replace("digits", "cifar10"))
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "nowhere"))  # no data is opened
    assert next(load(text).cells()).recipe == zoo.recipe("cifar10", "mlp").to_json()
    file.write_text('[model]\nnetwork = "net:build"\n[data]\ntrain = "train.csv"\n')
    with pytest.raises(UserError, match=lined(r"a \[recipe\] @5, got none in mine.toml: add one")):
        load(text)


def test_a_project_may_forget_canaries_too(load, project, tmp_path):
    """They come on top of the samples of the data set, and so may be asked for."""
    text, file = project().replace("class=3", "random=200"), tmp_path / "projects" / "mine.toml"
    file.write_text(file.read_text() + "canaries = 20\n")
    assert next(load(text).cells()).recipe["canaries"] == 0
