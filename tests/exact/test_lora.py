import functools
import hashlib
import sys
import threading

import pytest
import torch
from torch import nn

from blocks import NETWORKS, QUIET, TASKS, images, outputs, vit
from expunge.copies import private
from expunge.errors import Incompatible, MissingExtra, UserError
from expunge.exact.ensemble import Ensemble
from expunge.exact.groups import blocks, head
from expunge.exact.lora import FrozenChanged, Lora, adapted, attach, check_frozen, extract, member, stage
from expunge.train import Recipe, fit

RECIPE = Recipe(epochs=2, lr=0.01, optimizer="adamw", batch_size=5, schedule="constant")


def how(at, **settings):
    return Lora(**{"rank": 2, "alpha": 4.0, "rslora": False, "targets": at.targets(), **settings})


def digests(named):
    return {n: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for n, t in named}


@functools.cache
def grown(kind, depth=3):
    """Train the first stages of one sequence; return the base, its parts, stages and networks, the data."""
    (build, make), task = NETWORKS[kind], TASKS[kind]
    base = build().requires_grad_(False)
    at = blocks(base)
    behind, groups, data = head(base, at), at.groups(3, 2), make()
    tensors, stages, trained = {}, [], []
    for i in range(depth):
        start = stage(base, at, behind, how(at), groups[: i + 1], tensors, seed=i)
        made = fit(start, task, data, RECIPE, runtime=QUIET, seed=i)
        check_frozen(start, made)
        stages.append(extract(made, at, behind, groups[i]))
        tensors = {**tensors, **stages[-1]}
        trained.append(made)
    return base, at, behind, groups, stages, trained, data, task


def union(stages, depth):
    return {name: t for part in stages[:depth] for name, t in part.items()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_stage_trains_its_blocks_alone(kind):
    build = NETWORKS[kind][0]
    base = build(13).requires_grad_(False)
    at = blocks(base)
    groups, behind = at.groups(13, 1), head(base, at)
    for i in (0, 2, 11, 12):  # blocks 12, 10, 1 and 0
        made = attach(build(13), at, groups[i], how(at))
        found = {int(n.removeprefix(f"{at.path}.").partition(".")[0]) for n in adapted(made)}
        assert found == set(groups[i])
        free = [n for n, p in made.named_parameters() if p.requires_grad]
        assert len(free) == 2 * len(groups[i]) * len(at.targets())
    tensors = {}
    for i in range(12):
        made = stage(base, at, behind, how(at), groups[: i + 1], tensors, seed=i)
        free = [n for n, p in made.named_parameters() if p.requires_grad and "lora" in n]
        assert {int(n.removeprefix(f"{at.path}.").partition(".")[0]) for n in free} == set(groups[i])
        tensors |= extract(made, at, behind, groups[i])


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_frozen_keeps_its_hash(kind):
    base, at, behind, groups, stages, trained, data, task = grown(kind, depth=1)
    before = digests([*base.named_parameters(), *base.named_buffers()])
    start = stage(base, at, behind, how(at), groups[:2], stages[0], seed=9)
    was = digests([*start.named_parameters(), *start.named_buffers()])
    made = fit(start, task, data, RECIPE, runtime=QUIET, seed=9)
    now = digests([*made.named_parameters(), *made.named_buffers()])
    moved = {n for n in was if was[n] != now[n]}
    free = {n for n, p in start.named_parameters() if p.requires_grad}
    assert moved == free
    assert digests([*base.named_parameters(), *base.named_buffers()]) == before
    assert digests([*start.named_parameters(), *start.named_buffers()]) == was


@pytest.mark.parametrize("kind", NETWORKS)
def test_truncation_gives_back_the_network_of_each_stage(kind):
    base, at, behind, groups, stages, trained, data, task = grown(kind)
    plain = outputs(base, data, task)
    for depth in (1, 2, 3):
        tensors = union(stages, depth)
        served = member(base, at, behind, how(at), groups[:depth], tensors)
        assert torch.equal(outputs(served, data, task), outputs(trained[depth - 1], data, task))
        assert not torch.equal(outputs(served, data, task), plain)
    assert torch.equal(outputs(member(base, at, behind, how(at), (), {}), data, task), plain)
    assert torch.equal(outputs(base, data, task), plain)


@pytest.mark.parametrize("kind", NETWORKS)
def test_one_adapter_of_all_stages_is_the_stack_of_several(kind):
    """The same stages as adapters of PEFT beside each other, all active."""
    import peft

    base, at, behind, groups, stages, _, data, task = grown(kind)
    for depth in (1, 2, 3):
        stack, names = private(base), [f"k{i}" for i in range(depth)]
        for i in range(depth):
            config = peft.LoraConfig(
                r=2, lora_alpha=4, target_modules=list(at.targets()), layers_to_transform=list(groups[i]),
                layers_pattern=at.path, fan_in_fan_out=kind == "gpt2",
            )  # fmt: skip
            stack = peft.inject_adapter_in_model(config, stack, adapter_name=names[i])
        for module in stack.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_adapter(names, inference_mode=True)
        own = dict(stack.named_parameters())
        with torch.no_grad():
            for i in range(depth):
                for name, tensor in stages[i].items():
                    if name.startswith("adapter/"):
                        plain = name.removeprefix("adapter/").removesuffix(".weight")
                        own[f"{plain}.{names[i]}.weight"].copy_(tensor)
                    else:
                        own[name.removeprefix("head/")].copy_(tensor)
        served = member(base, at, behind, how(at), groups[:depth], union(stages, depth))
        assert torch.equal(outputs(served, data, task), outputs(stack.eval(), data, task))


def test_members_share_the_backbone():
    base, at, behind, groups, stages, _, data, _ = grown("vit")
    members = {str(d): member(base, at, behind, how(at), groups[:d], union(stages, d)) for d in (1, 2, 3)}
    of_base = {p.data_ptr() for p in base.parameters()}
    for depth, one in members.items():
        own = [n for n, p in one.named_parameters() if p.data_ptr() not in of_base]
        assert len(own) == 8 * int(depth) + 2  # two matrices of two targets of two blocks a stage, weight and bias
        assert not any(p.requires_grad for p in one.parameters())
        assert not one.training
    one = Ensemble(base, members)
    size = sum(p.numel() for p in one.parameters())
    extra = sum(t.numel() for d in (1, 2, 3) for n, t in union(stages, d).items())
    assert size == sum(p.numel() for p in base.parameters()) + extra
    assert torch.isfinite(outputs(one, data)).all()


def test_many_threads_read_one_member():
    base, at, behind, groups, stages, _, data, _ = grown("vit")
    served = [member(base, at, behind, how(at), groups[:d], union(stages, d)) for d in (1, 2, 3)]
    want = [outputs(m, data) for m in served]
    wrong = []

    def work(k):
        for _ in range(20):
            wrong.extend([k] * (not torch.equal(outputs(served[k % 3], data), want[k % 3])))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_scale_is_explicit():
    base, data = vit().requires_grad_(False), images()
    at = blocks(base)
    groups = at.groups(1, 2)
    classic, stable = how(at, rank=4, alpha=8.0), how(at, rank=4, alpha=8.0, rslora=True)
    assert (classic.scale, stable.scale) == (2.0, 4.0)
    tensors = {
        n: torch.full_like(t, 0.1) for n, t in extract(attach(vit(), at, groups[0], classic), at, (), groups[0]).items()
    }
    double = {n: 2 * t if n.endswith("lora_B.weight") else t for n, t in tensors.items()}
    first = outputs(member(base, at, (), stable, groups, tensors), data)
    assert torch.allclose(first, outputs(member(base, at, (), classic, groups, double), data), atol=1e-6)
    layer = member(base, at, (), classic, groups, tensors).get_submodule(f"{at.path}.5.attention.q_proj")
    x = torch.randn(2, 16)
    want = layer.base_layer(x) + 2.0 * x @ torch.full((16, 4), 0.1) @ torch.full((4, 16), 0.1)
    assert torch.allclose(layer(x), want, atol=1e-6)


def test_a_new_stage_changes_nothing_until_it_is_trained():
    base, at, behind, groups, stages, trained, data, _ = grown("vit", depth=1)
    start = stage(base, at, behind, how(at), groups[:2], stages[0], seed=4).eval()
    assert torch.equal(outputs(start, data), outputs(trained[0], data))


def test_the_seed_decides_the_new_adapters_and_leaves_the_generator_alone():
    base = vit().requires_grad_(False)
    at = blocks(base)
    state = torch.random.get_rng_state()
    made = [extract(stage(base, at, (), how(at), at.groups(1, 2), {}, seed=s), at, (), (5, 4)) for s in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[0])
    assert not all(torch.equal(made[0][n], made[2][n]) for n in made[0])
    assert all(bool((t == 0).all()) for n, t in made[0].items() if "lora_B" in n)


def test_tensors_that_do_not_fit_are_named():
    base, at, behind, groups, stages, *_ = grown("vit", depth=1)
    place = f"adapter/{at.path}.5.attention.q_proj.lora_A.weight"

    def put(tensors, depth=1):
        member(base, at, behind, how(at), groups[:depth], tensors)

    with pytest.raises(Incompatible, match=f"got no {place}: take the state"):
        put({n: t for n, t in stages[0].items() if n != place})
    with pytest.raises(Incompatible, match="unknown adapter/x"):
        put({**stages[0], "adapter/x": torch.zeros(1)})
    with pytest.raises(Incompatible, match=r"torch.float32 \(3, 16\) for torch.float32 \(2, 16\)"):
        put({**stages[0], place: torch.zeros(3, 16)})
    with pytest.raises(Incompatible, match="torch.float64"):
        put({**stages[0], place: stages[0][place].double()})
    with pytest.raises(Incompatible, match="the tensors of 18 weights of stages, got no adapter/vit.layers.2"):
        put(stages[0], depth=2)


def test_adapters_on_adapters_are_refused():
    made = attach(vit(), blocks(vit()), (5,), how(blocks(vit())))
    with pytest.raises(UserError, match="a network without adapters, got adapters on vit.layers.5.attention.q_proj"):
        attach(made, blocks(vit()), (4,), how(blocks(vit())))


def test_a_stage_that_moves_a_buffer_is_found_out():
    start = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    made = private(start)
    check_frozen(start, made)
    made(torch.randn(4, 2))
    with pytest.raises(FrozenChanged, match="that a stage leaves alone, got others in 1.running_mean"):
        check_frozen(start, made)
    start[0].weight.requires_grad_(False)
    made = private(start)
    with torch.no_grad():
        made[0].weight[0, 0] += 1e-6
        made[0].bias += 1
    with pytest.raises(FrozenChanged, match=r"got others in 0.weight:"):
        check_frozen(start, made)


def test_without_peft_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match="peft"):
        attach(vit(), blocks(vit()), (5,), how(blocks(vit())))
