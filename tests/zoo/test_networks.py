import importlib
import multiprocessing
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from expunge import tensors
from expunge.data import Data
from expunge.errors import MissingExtra, UserError
from expunge.fisher import diagonal
from expunge.runtime import Runtime
from expunge.task import Classification, Regression
from expunge.train import fit, fresh
from expunge.zoo import networks, recipes
from expunge.zoo.networks import BASE, BASE_SHAPE, Pair, ResNet18, Tokens

QUIET = Runtime(progress=False, device="cpu", batch_size=3)
WORDS = Tokens(length=6, vocabulary=30)
PAIRS = Pair(length=3, vocabulary=30)
SHAPES = {
    "convnet": (1, 8, 8),
    "convnet4": (1, 8, 8),
    "lenet": (1, 12, 12),
    "mlp": (5,),
    "resnet18": (1, 8, 8),
    "vit": (1, 8, 8),
    "text": WORDS,
    "text_pair": PAIRS,
}


def inputs(shape, n=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    if isinstance(shape, Pair):
        both = inputs(Tokens(2 * shape.length, shape.vocabulary), n)
        return {**both, "token_type_ids": torch.arange(2).repeat_interleave(shape.length).expand(n, -1)}
    if not isinstance(shape, Tokens):
        return torch.randn(n, *shape, generator=generator, dtype=dtype)
    ids = torch.randint(2, shape.vocabulary, (n, shape.length), generator=generator)
    mask = (torch.arange(shape.length) < torch.tensor([6, 2, 4, 1, 3, 5])[:n, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def data(shape, n=4, outputs=3, dtype=torch.float32):
    return Data.from_arrays(inputs(shape, n, dtype), [i % outputs for i in range(n)])


# ResNet-18.


def test_the_parameters_of_resnet18():
    model = ResNet18((3, 32, 32), 100)
    tensors_ = list(model.parameters())
    assert len(tensors_) == 62
    assert sum(p.numel() for p in tensors_) == 11_220_132
    assert sum(p.numel() for p in tensors_ if p.dim() == 1) == 9_700
    own = [m for m in model.children() if hasattr(m, "reset_parameters")]
    assert sum(p.numel() for m in own for p in m.parameters()) == 51_300  # children alone: the head


def test_the_shapes_inside_resnet18():
    model = ResNet18((3, 32, 32), 10).eval()
    seen = []
    for block in model.stages:
        block.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, 4, 4)] * 2
    projected = [i for i, b in enumerate(model.stages) if len(b.shortcut)]
    assert projected == [2, 4, 6]
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    block = networks.Block(2, 3, 2).double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    a, na, _, b, nb = block.body
    deep = nb(b(na(a(x)).clamp_min(0)))
    assert torch.allclose(block(x), (deep + block.shortcut[1](block.shortcut[0](x))).clamp_min(0))
    assert torch.equal(networks.Block(2, 2, 1).shortcut(x), x)


def test_the_activations_of_the_four_blocks():
    model = networks.build("convnet4", (1, 8, 8), 1).eval()
    taps = [f"block{i}" for i in range(1, 5)]
    _, found = Regression().forward(model, data((1, 8, 8)).read(range(4)), taps)
    assert [tuple(found[t].shape[1:]) for t in taps] == [(16, 8, 8), (32, 4, 4), (32, 4, 4), (64, 2, 2)]
    assert min(float(f.detach().min()) for f in found.values()) >= 0
    assert sum(p.numel() for p in model.parameters()) == 9 * (16 + 16 * 32 + 32 * 32 + 32 * 64) + 2 * 144 + 65


# All of them.


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_factory_can_be_sent_and_draws_from_the_random_state(name):
    make = networks.factory(name, SHAPES[name], 3)
    again = pickle.loads(pickle.dumps(make))
    digests = []
    for build, seed in ((make, 0), (again, 0), (make, 1)):
        torch.manual_seed(seed)
        digests.append(tensors.weights_digest(build()))
    assert digests[0] == digests[1] != digests[2]
    found = Classification().forward(make().eval(), data(SHAPES[name]).read(range(4)))[0]
    assert found.shape == (4, 3)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_networks_can_be_drawn_anew(name):
    make = networks.factory(name, SHAPES[name], 3)
    model = make()
    for start in (fresh(model, new_model=make), fresh(model)):
        assert tensors.shapes_digest(start) == tensors.shapes_digest(model)
        assert tensors.weights_digest(start) != tensors.weights_digest(model)


def small(name):
    """Return a network of the same make that a reference can be computed on, in float64."""
    torch.manual_seed(3)
    if name == "resnet18":
        stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        blocks = [networks.Block(3, 3, 1), networks.Block(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(stem, *blocks, nn.Linear(4, 3))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model
    model = networks.factory(name, SHAPES[name], 3)()
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    return model


@pytest.mark.parametrize("of", ["loss", "output_norm"])
@pytest.mark.parametrize("name", ["resnet18", "vit", "text", "text_pair", "convnet4"])
def test_diagonals_of_networks_are_the_references(name, of, caplog):
    model = small(name).double().eval()
    found = data(SHAPES[name], n=3, dtype=torch.float64)
    options = {"of": of, "runtime": QUIET}
    fast = diagonal(model, Classification(), found, **options).values
    slow = diagonal(model, Classification(), found, engine="reference", **options).values
    assert fast.keys() == slow.keys() == tensors.parameters(model).keys()
    for key, value in slow.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-8, atol=1e-16)
    assert "one backward pass a sample" not in caplog.text


def test_the_text_classifier_does_not_look_behind_the_mask():
    model = small("text").eval()
    batch = inputs(WORDS, 5)
    plain = model(**batch).logits
    longer = {k: v.clone() for k, v in batch.items()}
    longer["input_ids"][batch["attention_mask"] == 0] = 7  # behind the mask
    assert torch.allclose(model(**longer).logits, plain, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "text", "text_pair"])
def test_transformers_train_without_chance_beyond_the_seed(name):
    make = networks.factory(name, SHAPES[name], 3)
    found, recipe = data(SHAPES[name], n=6), recipes.recipe("digits", name)
    runs = [fit(fresh(make(), new_model=make, seed=1), Classification(), found, recipe, runtime=QUIET) for _ in "ab"]
    digests = [tensors.weights_digest(m) for m in runs]
    assert digests[0] == digests[1]
    config = runs[0].config
    assert config._attn_implementation == "eager"
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0


def test_a_pair_is_read_in_order_and_by_its_types():
    model = small("text_pair").eval()
    batch = inputs(PAIRS, 4)
    plain = model(**batch).logits
    swapped = {k: torch.cat([v[:, 3:], v[:, :3]], dim=1) if k != "token_type_ids" else v for k, v in batch.items()}
    assert not torch.allclose(model(**swapped).logits, plain, atol=1e-4)
    other = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    assert not torch.allclose(model(**other).logits, plain, atol=1e-4)


def shapes_of(make, queue):
    queue.put(tensors.shapes_digest(make()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_spawned_workers_can_build(name):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    make = networks.factory(name, SHAPES[name], 3)
    worker = context.Process(target=shapes_of, args=(make, queue))
    worker.start()
    assert queue.get(timeout=120) == tensors.shapes_digest(make())
    worker.join()


# What cannot be built.


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("vti", (3, 8, 8), "a known network, got 'vti': did you mean 'vit'"),
        ("resnet18", (10,), "inputs of 3 dimensions for resnet18, got shape (10,): take another network: mlp"),
        ("text", PAIRS, "texts for text, got pairs of texts of 3 tokens: take another network: text_pair"),
        ("text_pair", WORDS, "pairs of texts for text_pair, got texts of 6 tokens: take another network: text"),
        ("vit", WORDS, "inputs of 3 dimensions for vit, got texts of 6 tokens: take another network: text"),
        (BASE, (3, 32, 32), f"images of shape (3, 224, 224) for {BASE}, got shape (3, 32, 32): take another network: "),
    ],
)
def test_networks_that_do_not_fit(name, shape, said):
    with pytest.raises(UserError, match=re.escape(said)):
        networks.factory(name, shape, 3)


def test_images_that_do_not_fall_into_patches():
    with pytest.raises(UserError, match="image sides in multiples of 4 for vit, got 30×32: resize the images"):
        networks.factory("vit", (1, 30, 32), 3)()


def test_the_zoo_comes_without_transformers():
    code = "import sys, expunge.zoo; assert 'transformers' not in sys.modules; expunge.zoo.load('digits')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "expunge.zoo.transformer", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"the package transformers.*pip install 'expunge\[hf\]'"):
        networks.factory("vit", (1, 8, 8), 3)
    assert networks.factory("resnet18", (1, 8, 8), 3) is not None


# The pretrained one.


@pytest.fixture
def models(tmp_path):
    """A tiny checkpoint under the name of the large one."""
    library = importlib.import_module("transformers")
    config = library.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, patch_size=112, num_labels=1000
    )
    torch.manual_seed(5)
    library.ViTForImageClassification(config).save_pretrained(tmp_path / "models" / BASE)
    return tmp_path / "models"


def test_the_pretrained_vit_keeps_its_backbone_and_gets_a_head(models, capfd):
    library = importlib.import_module("transformers")
    stored = library.ViTForImageClassification.from_pretrained(models / BASE).state_dict()
    capfd.readouterr()
    make = networks.factory(BASE, BASE_SHAPE, 7, models=models)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(make().state_dict())
    for name, value in made[0].items():
        if name.startswith("classifier"):
            assert value.shape[0] == 7
        else:
            assert torch.equal(value, stored[name])
    assert torch.equal(made[0]["classifier.weight"], made[1]["classifier.weight"])
    assert not torch.equal(made[0]["classifier.weight"], made[2]["classifier.weight"])
    assert capfd.readouterr().err == ""
    same = networks.factory(BASE, BASE_SHAPE, 1000, models=models)().state_dict()
    assert not torch.equal(same["classifier.weight"], stored["classifier.weight"])  # new even where it would fit
    start = fresh(make(), new_model=make, seed=2)
    assert torch.equal(start.state_dict()["vit.embeddings.cls_token"], stored["vit.embeddings.cls_token"])
    out, _ = Classification().forward(start.eval(), data(BASE_SHAPE, n=2).read([0, 1]))
    assert out.shape == (2, 7)


def test_the_pretrained_vit_on_resized_grey_images(models):
    from expunge import zoo
    from zoo.test_named import stored

    stored(models.parent, "fashion_mnist", 2)
    found = zoo.load("fashion_mnist", BASE, data_dir=models.parent)
    batch = found.train.read([0, 1])
    assert batch.inputs.shape == (2, 3, 224, 224)
    assert torch.equal(batch.inputs[:, 0], batch.inputs[:, 2])
    assert found.task.forward(found.new_model().eval(), batch)[0].shape == (2, 10)
    assert (found.recipe.epochs, found.recipe.milestones, found.recipe.crop) == (8, (7,), 28)


def test_what_is_said_without_the_pretrained_vit(monkeypatch, tmp_path):
    library = importlib.import_module("transformers")

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nmore")

    monkeypatch.setattr(library.ViTForImageClassification, "from_pretrained", unreachable)
    make = networks.factory(BASE, BASE_SHAPE, 7, models=tmp_path)
    said = "the pretrained network google/vit-base-patch16-224, got We couldn't connect"
    with pytest.raises(UserError, match=said) as found:
        make()
    assert "models/vit-base-patch16-224" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_broken_checkpoint_is_named(models):
    (models / BASE / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=re.escape(f"the pretrained network {models / BASE}, got")):
        networks.factory(BASE, BASE_SHAPE, 7, models=models)()
