import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import zoo
from expunge.bench import fits
from expunge.draws import Request
from expunge.errors import Incompatible, UserError
from expunge.project import Project
from expunge.runtime import Runtime
from expunge.scenario import forget_dates
from expunge.selection import Who, text, title
from expunge.task import Quantile, Regression
from expunge.train import fit
from expunge.trial import describe
from expunge.zoo import ett
from hourly import HOURS, lines, put

SHARED = Path(os.environ.get("EXPUNGE_DATA") or Path(__file__).parents[3] / "shared" / "data")
QUIET = Runtime(progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    text, values, dates = lines()
    return put(tmp_path_factory.mktemp("data"), text), values, dates


def test_windows_are_those_of_the_file_and_stay_in_their_part(made):
    root, values, dates = made
    found = zoo.load("ett", data_dir=root)
    own = values[: ett.PARTS["train"]]
    scaled = (values - own.mean(axis=0)) / own.std(axis=0)
    first = 0
    for part, hours in zip((found.train, found.holdout, found.test), ett.PARTS.values(), strict=True):
        assert len(part) == hours - 191
        assert part.ids[0] == f"ett/{first}"
        for at in (0, 7, len(part) - 1):
            batch, row = part.read([at]), first + at
            np.testing.assert_allclose(batch.inputs[0], scaled[row : row + 168], atol=1e-5)
            np.testing.assert_allclose(batch.target[0], scaled[row + 168 : row + 192, -1], atol=1e-5)
            assert part.column("start")[at] == str(dates[row]).replace("T", " ")
            assert part.column("end")[at] == str(dates[row + 191]).replace("T", " ")
            assert part.ids[at] == f"ett/{row}"
        first += hours
        last = np.datetime64(part.column("end")[-1].replace(" ", "T"))
        assert last == dates[first - 1]  # and the next part begins an hour later


def test_only_the_training_hours_decide_the_scale(tmp_path, made):
    def change(rows):
        for at in range(1 + ett.PARTS["train"], len(rows)):
            rows[at] = rows[at].partition(",")[0] + ",1000" * 7

    other = put(tmp_path, lines(change=change)[0])
    one, two = (zoo.load("ett", data_dir=root, limit=20).train for root in (made[0], other))
    assert torch.equal(one.read(range(20)).inputs, two.read(range(20)).inputs)
    assert float(zoo.load("ett", data_dir=other, limit=20).test.targets().min()) > 100


@pytest.mark.parametrize("limit", [8, 353, 5000, 9000])
def test_a_limit_takes_windows_at_one_stride(made, limit):
    found = zoo.load("ett", data_dir=made[0], limit=limit)
    for part, divisor, hours in ((found.train, 1, 8640), (found.holdout, 8, 2880), (found.test, 2, 2880)):
        most = hours - 191
        n = min(limit // divisor, most)
        assert len(part) == n
        rows = np.array([int(i.partition("/")[2]) for i in part.ids])
        assert set(np.diff(rows).tolist()) <= {most // n}
        assert torch.equal(part.read([n - 1]).inputs, zoo.load("ett", data_dir=made[0]).train.read([0]).inputs) == (
            n == 1 and divisor == 1
        )
    assert zoo.known("ett", limit=limit).size == len(found.train)


@pytest.mark.parametrize(
    ("name", "task", "outputs"), [("ett", Quantile((0.1, 0.5, 0.9)), (24, 3)), ("ett_mean", Regression(), (24,))]
)
@pytest.mark.parametrize("network", ["linear_forecast", "lstm_forecast"])
def test_networks_and_tasks_fit(made, name, task, outputs, network):
    found = zoo.load(name, network, data_dir=made[0], limit=40)
    assert (found.task, found.classes) == (task, ())
    batch = found.train.read(range(3))
    made_out, _ = found.task.forward(found.new_model().eval(), batch)
    assert made_out.shape == (3, *outputs)
    found.task.check(made_out, batch.target)
    known = zoo.known(name, network, 40)
    assert (known.shape, known.size, known.counts) == (tuple(batch.inputs.shape[1:]), 40, ())
    assert known.columns == dict.fromkeys(found.train.columns)
    assert zoo.recipe(name, network) == found.recipe
    assert zoo.network(name) == "linear_forecast"


def test_the_linear_network_learns(made):
    found = zoo.load("ett", data_dir=made[0], limit=300)
    torch.manual_seed(0)
    start = found.new_model()
    model = fit(start, found.task, found.train, found.recipe, runtime=QUIET)
    batch = found.test.read(range(len(found.test)))
    outputs = [found.task.forward(m.eval(), batch)[0].detach() for m in (start, model)]
    before, after = (float(found.task.loss(out, batch.target).mean()) for out in outputs)
    assert after < 0.8 * before


def test_no_window_with_a_forgotten_hour_stays_in_retain(made):
    found = zoo.load("ett", data_dir=made[0], limit=700)
    case = forget_dates(found.train, "2016-12-01", "2016-12-14", holdout=found.holdout, test=found.test)
    low, high = np.datetime64("2016-12-01T00"), np.datetime64("2016-12-14T23")
    for ids, overlaps in ((case.forget, True), (case.retain, False)):
        part = found.train.subset(ids)
        starts, ends = (part.column(c).astype("datetime64[h]") for c in ("start", "end"))
        assert ((starts <= high) & (ends >= low)).all() if overlaps else not ((starts <= high) & (ends >= low)).any()


def test_a_benchmark_asks_for_dates(made):
    found = zoo.load("ett", data_dir=made[0], limit=300)
    request = Request.parse("dates=2016-12-01..2016-12-01")
    train, case = request.draw(found, 0)
    assert case == forget_dates(train, "2016-12-01", "2016-12-01", holdout=found.holdout, test=found.test)
    assert request.parts(found, 0) == [case.forget]
    assert Request.from_json(request.to_json()) == request
    assert str(request) == "dates 2016-12-01..2016-12-01"
    assert (
        describe(request, found)[0]
        == "All training windows with an hour of 2016-12-01..2016-12-01 in them are to be forgotten."
    )
    fits.check_request(request, zoo.known("ett"))
    with pytest.raises(UserError, match="a column of digits, got 'start'"):
        fits.check_request(request, zoo.known("digits"))
    with pytest.raises(UserError, match=r"write for example dates=2016-08-01\.\.2016-08-31"):
        Request.parse("dates=2016-12-01")
    with pytest.raises(UserError, match="a request without classes of ett, got 'class 1'"):
        fits.check_request(Request.parse("class=1"), zoo.known("ett"))
    with pytest.raises(UserError, match="got windows of 168 steps of 7 series in ett"):
        fits.check_inputs(zoo.recipe("cifar10", "resnet18"), zoo.known("ett"))


def test_a_request_names_dates(made):
    place = Project.named("ett_mean", None, None, made[0])
    case = Who(label="2016-12-01..2016-12-01").scenario(place, place.train, 0)
    assert case == forget_dates(place.train, "2016-12-01", "2016-12-01", holdout=place.holdout, test=place.test)
    said = "every window of the series with a moment from 2016-12-01 to 2016-12-01 in it"
    assert text(case) == f"Forgotten: {said}, {24 + 191} of 8449 training samples."
    assert title(case) == "dates 2016-12-01..2016-12-01"


def broken(at, cell):
    def change(rows):
        rows[at] = cell(rows[at])

    return change


@pytest.mark.parametrize(
    ("hours", "change", "said"),
    [
        (HOURS, broken(0, lambda line: line.replace("OT", "XT")), "a column 'OT' in"),
        (HOURS - 1, None, f"{HOURS} hours in"),
        (HOURS, broken(9, lambda line: line.rpartition(",")[0] + ","), "a number in every cell of"),
        (HOURS, broken(9, lambda line: line.rpartition(",")[0] + ",high"), "dates and numbers in"),
        (HOURS, broken(9, lambda line: line.replace("08:00", "08:30")), "one row an hour in"),
    ],
)
def test_files_that_are_not_the_published_one(tmp_path, hours, change, said):
    put(tmp_path, lines(hours, change)[0])
    with pytest.raises(Incompatible, match=said):
        zoo.load("ett", data_dir=tmp_path)


def test_without_the_file_it_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    with pytest.raises(UserError, match=r"the file ett/ETTh1.csv, got no data folder: take it from github"):
        zoo.load("ett")
    with pytest.raises(UserError, match=re.escape(f"the file ett/ETTh1.csv, got none in {tmp_path}")):
        zoo.load("ett", data_dir=tmp_path)
    with pytest.raises(UserError, match="a limit of at least 8 samples, one a class, got 7"):
        zoo.load("ett", limit=7)


@pytest.mark.skipif(not (SHARED / "ett").is_dir(), reason="no ett in EXPUNGE_DATA or ../shared/data")
def test_the_real_one():
    found = zoo.load("ett", data_dir=SHARED, limit=400)
    assert found.train.column("start")[0] == "2016-07-01 00:00:00"
    assert found.test.column("start")[0] == "2017-10-24 00:00:00"
    y = found.train.targets()
    assert y.mean().abs() < 0.1
    assert 0.9 < y.std() < 1.1
