"""The house rules on order, size and silence: the list is the law, a module imports only what stands above it."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

import expunge

ROOT = Path(expunge.__file__).parent
LAW = """
__init__ errors files seeds stats extras
tensors processes copies runtime sources data
task/_base task/classification task/binary task/multilabel task/regression task/quantile task/causal_lm task/__init__
passes scenario identity canaries poison noise
fisher/checks fisher/kernels fisher/quantities fisher/reference fisher/batched fisher/sums fisher/attention
fisher/rules
fisher/uses fisher/layers fisher/engine fisher/partial fisher/__init__
masks penalties recipe checkpoints train stacked signals evidence
influence/space influence/products influence/gram influence/solvers influence/woodbury influence/__init__
part references registry method metric
concepts/windows concepts/maps concepts/attribution concepts/tcav concepts/cav concepts/bank concepts/clusters
concepts/head concepts/donor concepts/patches concepts/answers concepts/words concepts/topics concepts/texts
concepts/__init__
exact/manifest exact/orders exact/priors exact/sequences exact/rates exact/arrivals exact/simulate exact/costs
exact/journal exact/book exact/receipt exact/assign exact/ensemble exact/groups exact/lora exact/stages exact/store
exact/__init__
objectives/_labels objectives/_distances objectives/_base objectives/* objectives/__init__
anchors/_base anchors/_rules anchors/_settings anchors/_flat anchors/_posterior anchors/_bgd anchors/_importance
anchors/_learn anchors/_gaussian anchors/_* anchors/* anchors/__init__
methods/_fields methods/_steps methods/_vae methods/_represent methods/_* methods/_laf methods/_concepts
methods/laf methods/* methods/__init__ choice stamp phase unlearn
exact/server exact/replay
plan
shadows/pool shadows/lira shadows/rmia shadows/klom shadows/quality shadows/gaussian shadows/__init__
attacks/_* attacks/* attacks/__init__ metrics/_* metrics/* metrics/__init__ scores bounds predicted mapped summary twins
evaluate
tables/* tables/__init__ zoo/transformer zoo/minilm zoo/forecast zoo/tabular zoo/networks zoo/public zoo/recipes
zoo/embedded zoo/cards zoo/named zoo/ett zoo/rows zoo/halves zoo/filed zoo/profiles zoo/__init__
project/sections project/measures project/config project/template project/entry project/weights project/pretrained
project/networks project/samples
project/__init__ kinds selection folders steps originals hardness draws trial
report/format report/document report/distance report/layout report/findings report/svg report/tables report/looks
report/labels report/recorded report/traces report/frontiers report/standalone
report/charts report/roc report/series report/predictions report/errors report/forecasts report/maps report/concepts
report/page report/grids report/heat report/pareto
report/tradeoff report/strips report/decay report/tunecharts report/tunepage report/cellpage report/gridpage
report/requestcharts report/requestpage report/requestcsv report/qualifycharts report/qualifypage report/__init__
ledger/events ledger/steps ledger/requests ledger/database ledger/keys ledger/book ledger/payloads ledger/marks
ledger/check ledger/signing ledger/account ledger/pack ledger/__init__
bench/cell bench/problems bench/grid_file bench/fits bench/grid bench/claims bench/store bench/rows bench/answers
bench/stages bench/together bench/runner
bench/workers bench/cluster bench/collect bench/ranks bench/comparison bench/remarks bench/sheets bench/forms
bench/table bench/pages bench/sweeps bench/shown bench/curves bench/planes bench/figures
bench/objectives bench/ground bench/study bench/spaces bench/tuning bench/tune
bench/__init__ qualify/tolerance qualify/equivalence qualify/kernels qualify/nearer qualify/rank qualify/power
qualify/planted qualify/finding qualify/verdict qualify/__init__
qualify/trials qualify/sizes qualify/strong qualify/judge qualify/asked qualify/simulate
qualify/study qualify/record
service/workspace service/lineage service/sealed service/archives service/leftovers service/rollback service/undo
service/artefacts service/targets service/facts service/measure service/outcome service/site service/made
service/qualified service/edit service/retrain service/attempt service/capacity service/process
service/limits service/record service/__init__ testing
cli/_app cli/_show cli/_samples cli/_jobs cli/_settings cli/_plan
cli/_requests cli/_requests_input cli/_requests_lookup cli/_requests_words cli/_requests_plan cli/_requests_fulfil
cli/* cli/__init__ __main__
"""
ORDER = LAW.split()
REGISTRIES = {"registry", "attacks/__init__", "metrics/__init__"}
MODULES = {str(p.relative_to(ROOT).with_suffix("")): ast.parse(p.read_text()) for p in sorted(ROOT.rglob("*.py"))}
QUALIFY = "equivalence kernels nearer rank power planted finding verdict __init__"  # of numbers alone
FREE = [m for m in MODULES if m in ORDER[:5] or m.startswith(("report/", "ledger/"))]  # of torch
FREE += [f"qualify/{name}" for name in QUALIFY.split()]
LOADERS = {(m, "load") for m in REGISTRIES}
OPTIONAL = {"extras", "project/entry"}  # import what an extra brings, or what the user names
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def rank(module):
    """Return a module's place in the list; modules under one pattern share theirs, and so cannot see each other."""
    if module in ORDER:
        return ORDER.index(module)
    return next((n for n, pattern in enumerate(ORDER) if fnmatch.fnmatchcase(module, pattern)), None)


def imported(node):
    """Return the modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        names = [f"{node.module}.{a.name}" for a in node.names]
    else:
        return []
    paths = [n.split(".")[1:] for n in names if n.split(".")[0] == "expunge"]
    tries = [
        ["/".join(p), "/".join([*p, "__init__"]), "/".join(p[:-1]), "/".join([*p[:-1], "__init__"])] for p in paths
    ]
    return [next(t for t in some if t in MODULES) for some in tries]


def bare_length(function):
    first = function.body[0]
    text = first.end_lineno - first.lineno + 1 if ast.get_docstring(function, clean=False) is not None else 0
    return function.end_lineno - function.lineno + 1 - text


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_listed_and_imports_only_what_stands_above(module):
    assert rank(module) is not None, f"{module} has no place in the list"
    below = {m for n in ast.walk(MODULES[module]) for m in imported(n) if rank(m) >= rank(module)}
    assert not below


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("cli/")])
def test_below_the_command_line_nothing_prints_or_imports_in_functions(module):
    tree = MODULES[module]
    functions = [n for n in ast.walk(tree) if isinstance(n, FUNCTION)]
    inner = [m for f in functions for n in ast.walk(f) for m in imported(n) if (module, f.name) not in LOADERS]
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    loads = [f for f in called if getattr(f, "attr", getattr(f, "id", "")) in ("import_module", "__import__")]
    assert inner == []
    assert [f for f in called if isinstance(f, ast.Name) and f.id == "print"] == []
    assert module in REGISTRIES | OPTIONAL or loads == []


@pytest.mark.parametrize("module", MODULES)
def test_sizes(module):
    lines = (ROOT / f"{module}.py").read_text().count("\n")
    assert lines <= 500
    functions = [n for n in ast.walk(MODULES[module]) if isinstance(n, FUNCTION)]
    assert {f.name: bare_length(f) for f in functions if bare_length(f) > 80} == {}


def test_no_place_is_listed_twice():
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize(("modules", "absent"), [(["__init__"], ["torch", "numpy"]), (FREE, ["torch"])], ids=len)
def test_what_must_not_reach_torch_does_not(modules, absent):
    names = [".".join(["expunge", *m.split("/")]).removesuffix(".__init__") for m in modules]
    code = f"""import importlib, sys
for name in {names}:
    importlib.import_module(name)
    found = [m for m in {absent} if m in sys.modules]
    assert not found, (name, found)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
