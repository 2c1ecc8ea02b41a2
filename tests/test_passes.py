from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.fisher import diagonal, diagonals
from expunge.passes import Passes, out_of_memory
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.train import Recipe, fit, mean_loss

D = torch.float64
TASK = Classification()
RUN = Runtime(batch_size=8, progress=False)


class Hungry(nn.Module):
    """A network that has memory for a few samples at once, and fails as a GPU or the CPU's allocator does."""

    def __init__(self, most, kind="cuda"):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.most, self.kind = nn.Linear(4, 3).to(D), most, kind

    def forward(self, x):
        if len(x) > self.most and self.kind == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if len(x) > self.most:
            torch.empty(2**55, dtype=torch.uint8)
        return self.body(x)


def samples(n=21):
    generator = torch.Generator().manual_seed(1)
    return Data.from_arrays(torch.randn(n, 4, dtype=D, generator=generator), torch.arange(n) % 3)


def test_the_pass_goes_on_where_it_was_with_half_the_batch(caplog):
    seen = []

    def work(batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Sorry")
        seen.extend(batch.index.tolist())
        return len(batch)

    order = torch.randperm(21)
    passes = Passes(RUN)
    with caplog.at_level("WARNING", logger="expunge"):
        assert list(passes.over(samples(), work, order)) == [2] * 10 + [1]
        assert list(passes.over(samples(5), work)) == [2, 2, 1]  # and stays so
    assert seen[:21] == order.tolist()
    assert [r.getMessage() for r in caplog.records] == ["memory ran out at 8 samples a pass: going on with 2"]


def test_memory_that_runs_out_later_halves_what_is_left():
    sizes = []

    def work(batch):
        if len(sizes) == 1 and len(batch) > 4:
            raise MemoryError
        sizes.append(len(batch))

    list(Passes(RUN).over(samples(), work))
    assert sizes == [8, 4, 4, 4, 1]


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("of", ["loss", "sampled_loss", "true", "output_norm"])
def test_importances_are_those_of_the_small_batch_and_it_is_said_once(caplog, of, kind):
    data = samples()
    groups = {"a": data.ids[:9], "b": data.ids[6:15]}
    with caplog.at_level("WARNING", logger="expunge"):
        found = diagonals(Hungry(2, kind).eval(), TASK, data, groups=groups, of=of, runtime=RUN)
    want = diagonals(Hungry(99).eval(), TASK, data, groups=groups, of=of, runtime=replace(RUN, batch_size=2))
    for name in want:
        assert found[name].count == want[name].count
        for key, value in want[name].sums.items():
            assert torch.allclose(found[name].sums[key], value, rtol=1e-12, atol=0)
    assert len([r for r in caplog.records if "memory ran out at 8" in r.getMessage()]) == 1


def test_outputs_and_mean_loss_are_those_of_the_small_batch(caplog):
    for call in (
        lambda m: collect(m, TASK, samples(), runtime=RUN).outputs,
        lambda m: torch.tensor(mean_loss(m, TASK, samples(), RUN), dtype=D),
    ):
        caplog.clear()
        with caplog.at_level("WARNING", logger="expunge"):
            assert torch.allclose(call(Hungry(3).eval()), call(Hungry(99).eval()), rtol=0, atol=1e-12)
        assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: collect(Hungry(0), TASK, samples(), runtime=RUN),
            "memory for one sample of train, got too little: free",
        ),
        (lambda: diagonal(Hungry(0).eval(), TASK, samples(), runtime=RUN), "memory for two samples of train"),
        (
            lambda: diagonal(Hungry(3).eval(), TASK, samples(), of="batch_mean", runtime=RUN),
            "memory for a batch of 8 samples, got too little: lower Runtime.batch_size, which 'batch_mean' depends on",
        ),
        (
            lambda: fit(Hungry(3), TASK, samples(), Recipe(epochs=1, batch_size=6), runtime=RUN),
            "memory for a batch of 6 samples, got too little: lower Recipe.batch_size",
        ),
    ],
)
def test_where_halving_does_not_help_or_would_change_the_result_it_is_a_sentence(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_other_failures_are_not_taken_for_a_shortage():
    def work(batch):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(Passes(RUN).over(samples(), work))
    assert not out_of_memory(ValueError("out of memory."))
