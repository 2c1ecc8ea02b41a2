"""Two processes started by accelerate's launcher, with gloo: the numbers of one, and no failure that one keeps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import together
from expunge import processes, tensors
from expunge.canaries import plant
from expunge.errors import ExpungeError, UserError
from expunge.fisher import diagonal
from expunge.runtime import Runtime
from expunge.train import fit

Found = list[tuple[dict[str, torch.Tensor], dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(folder: Path) -> None:
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    command += ["--main_process_port", str(free_port()), together.__file__, str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Return what each of two processes found: tensors and facts."""
    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "together"  # one launch for all workers
    with FileLock(f"{folder}.lock"):
        if not (folder / "1.safetensors").exists():
            launch(folder)
    return [
        ({name: found[name] for name in found}, meta)
        for found, meta in (tensors.load(folder / f"{rank}.safetensors") for rank in (0, 1))
    ]


def test_two_processes_find_what_one_finds(both: Found) -> None:
    alone = together.numbers(together.RUN)
    assert [meta["count"] for _, meta in both] == [2, 2]
    for found, _ in both:
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(found[name].double(), value.double(), rtol=1e-9, atol=1e-12), name
    assert all(torch.equal(both[0][0][name], both[1][0][name]) for name in alone)


def test_a_shortage_of_memory_is_said_once_on_each_process(both: Found) -> None:
    said = ["memory ran out at 4 samples a pass: going on with 2"]
    assert [meta["memory"] for _, meta in both] == [said, said]


WORDS = {
    "raises": "UserError: Expected a good day, got a bad one with 1: try tomorrow.",
    "hook": "MethodFault: Method odd returned a Sequential that cannot be sent to the other processes",
    "apart": "MethodFault: Method apart left other weights on process 1 than on process 0",
    "skips": "MethodFault: Method skips never read 1 of 5 samples to forget.",
    "other weights": "UserError: Expected the same weights on every process, got others on process 1",
    "other weights to fit": "UserError: Expected the same weights on every process",
    "other weights to diagonal": "UserError: Expected the same weights on every process",
    "other seed": "UserError: Expected the same settings on every process, got others on process 1 than on process 0",
    "nan": "NotFinite: Expected a finite training loss, got nan at step 1 in epoch 1",
    "nan in diagonal": "NotFinite: Expected finite per-sample gradients",
    "fit fails": "ValueError: process 1 fails",
    "diagonal fails": "ValueError: process 0 fails",
    "labels": "UserError: Expected labels in train, got none: give targets",
    "numbers": "UserError: Expected 3 processes, got 2: start with accelerate launch --num_processes 3",
    "failed": "ValueError: process 1 fails",
}


@pytest.mark.parametrize("what", WORDS)
def test_what_fails_on_one_process_is_raised_on_both(both: Found, what: str) -> None:
    first, second = (meta[what] for _, meta in both)
    assert first == second
    assert first.startswith(WORDS[what])


def test_a_method_of_one_process_gives_all_the_same(both: Found) -> None:
    first, second = (meta for _, meta in both)
    for what in ("weights", "weights without pickle", "state"):
        assert first[what] == second[what]
    assert first["kept"] == second["kept"] == [False, "cannot be pickled"]
    assert first["weights"] == first["weights without pickle"]
    assert first["weights"] != tensors.weights_digest(together.network())


def test_the_first_process_reports_for_both(both: Found) -> None:
    assert both[0][1]["progress"] == [3, 23, 23]
    assert both[1][1]["progress"] == [0]


def test_a_process_may_work_alone(both: Found) -> None:
    sums = diagonal(together.network(), together.TASK, together.blobs(23), runtime=together.RUN).sums
    want = tensors.tensor_digest(torch.cat([v.flatten() for v in sums.values()]))
    assert [meta["lone"] for _, meta in both] == [want, want]


def test_a_pass_resumes_under_two_processes(both: Found) -> None:
    first, second = (meta for _, meta in both)
    assert first["pass failed"] == second["pass failed"] == "ValueError: process 1 fails"
    assert first["pass left"] == second["pass left"] == 2
    assert len({*first["pass"], *second["pass"]}) == 1
    assert first["pass fewer"]
    assert second["pass fewer"]
    assert first["pass still"] == second["pass still"] == 0


def test_the_learning_of_sigma_resumes_under_two_processes(both: Found) -> None:
    first, second = (meta for _, meta in both)
    assert first["sigma failed"] == second["sigma failed"] == "ValueError: process 1 fails"
    assert first["sigma left"] == second["sigma left"] == 1  # process 0 writes for both
    assert len({*first["sigma"], *second["sigma"]}) == 1
    assert first["sigma fewer"]
    assert second["sigma fewer"]
    assert first["sigma still"] == second["sigma still"] == 0


def test_training_resumes_under_two_processes(both: Found) -> None:
    first, second = (meta for _, meta in both)
    assert first["left"] == second["left"] == 1
    assert len({*first["resumed"], *second["resumed"]}) == 1
    assert first["counted"] == second["counted"] == 16
    assert (first["steps"], second["steps"]) == (8, 6)  # of the last two epochs; the second idles in the last step


def test_canaries_are_planted_alike_and_named_by_the_first_process(both: Found) -> None:
    train, found = plant(together.blobs(23), 4, seed=6)
    alone = fit(together.network(), together.TASK, train, together.PLAIN, runtime=together.RUN, seed=6)
    sums = [float(v.sum()) for v in alone.state_dict().values()]
    assert [meta["saves"] for _, meta in both] == [1, 0]
    assert [meta["canaries"] for _, meta in both] == [found.digest()] * 2
    for _, meta in both:
        assert meta["planted"] == pytest.approx(sums, rel=1e-9)
        assert "got the canaries of another training" in meta["planted elsewhere"]


def test_one_process_needs_no_other() -> None:
    runtime = Runtime(device="cpu", progress=False)
    assert (runtime.count, runtime.rank, runtime.main, runtime.alone().count) == (1, 0, True, 1)
    assert runtime.gathered("a") == ["a"]
    assert runtime.on_main(object) is not None
    runtime.barrier()
    runtime.same(weights="a")
    with pytest.raises(KeyError, match="b"), runtime.agreed():
        raise KeyError("b")


class Special(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Local(Exception):
    pass


def test_exceptions_travel_as_they_are_or_as_their_text() -> None:
    kind, args = processes._portable(UserError("a", "b", "c"))
    made = processes._rebuilt(3, kind, args)
    assert (type(made), str(made)) == (UserError, "Expected a, got b: c.")
    assert made.__notes__ == ["Raised on process 3."]
    assert str(processes._rebuilt(0, *processes._portable(Special(1, 2)))) == "1 and 2"
    kind, args = processes._portable(Local(lambda: 1))
    assert kind is ExpungeError
    assert args[0].startswith("Local: <function")


def test_a_lost_process_is_a_sentence() -> None:
    with pytest.raises(UserError, match="to go on, got one that ended or waited too long"), processes._together():
        raise RuntimeError("Connection closed by peer")
