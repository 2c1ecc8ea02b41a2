import re

import pytest
import transformers
from torch import nn

from expunge.errors import UserError
from expunge.exact.groups import Blocks, batch_norms, blocks, head, is_language_model, tied

SIZE = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
WORDS = {"vocab_size": 11, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def vit(count=2):
    config = transformers.ViTConfig(
        **SIZE, num_hidden_layers=count, image_size=8, patch_size=4, num_channels=1, num_labels=3
    )
    return transformers.ViTForImageClassification(config)


def bert(kind="BertForSequenceClassification", count=2, **more):
    settings = {**SIZE, **WORDS, "num_hidden_layers": count, "num_labels": 3, **more}
    of = kind.partition("For")[0].removesuffix("Model")
    return getattr(transformers, kind)(getattr(transformers, f"{of}Config")(**settings))


def distilbert():
    config = transformers.DistilBertConfig(dim=8, n_layers=2, n_heads=2, hidden_dim=8, vocab_size=11, num_labels=3)
    return transformers.DistilBertForSequenceClassification(config)


def llama(count=2):
    settings = {**SIZE, **WORDS, "num_hidden_layers": count, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def gpt2(count=2):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=count, n_head=2, **WORDS))


class Sentences(nn.Module):
    """A sentence encoder such as MiniLM, with a head of its own."""

    def __init__(self):
        super().__init__()
        self.encoder, self.classifier = bert("BertModel"), nn.Linear(8, 3)

    def forward(self, **inputs):
        return self.classifier(self.encoder(**inputs).last_hidden_state.mean(1))


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = vit(), vit(3)

    def forward(self, x):
        return self.left(x).logits + self.right(x).logits


FOUND = {
    "vit": (vit, "vit.layers", ("attention.q_proj", "attention.v_proj"), ("classifier",)),
    "bert": (bert, "bert.encoder.layer", ("attention.self.query", "attention.self.value"), ("classifier",)),
    "roberta": (
        lambda: bert("RobertaForSequenceClassification"),
        "roberta.encoder.layer",
        ("attention.self.query", "attention.self.value"),
        ("classifier",),
    ),
    "distilbert": (
        distilbert,
        "distilbert.transformer.layer",
        ("attention.q_lin", "attention.v_lin"),
        ("pre_classifier", "classifier"),
    ),
    "sentences": (
        Sentences,
        "encoder.encoder.layer",
        ("attention.self.query", "attention.self.value"),
        ("classifier",),
    ),
    "inside": (
        lambda: nn.Sequential(vit()),
        "0.vit.layers",
        ("attention.q_proj", "attention.v_proj"),
        ("0.classifier",),
    ),
    "llama": (llama, "model.layers", ("self_attn.q_proj", "self_attn.v_proj"), ()),
    "gpt2": (gpt2, "transformer.h", ("attn.c_attn",), ()),
}


@pytest.mark.parametrize("kind", FOUND)
def test_blocks_targets_and_head_are_found(kind):
    build, path, targets, behind = FOUND[kind]
    model = build()
    at = blocks(model)
    assert (at.path, at.count) == (path, 2)
    assert at.targets() == targets
    assert head(model, at) == behind
    assert is_language_model(model) == (kind in ("llama", "gpt2"))


def test_groups_go_from_the_output_down():
    at = Blocks("layers", 13, ())
    assert at.groups(3, 4) == ((12, 11, 10, 9), (8, 7, 6, 5), (4, 3, 2, 1))
    assert at.groups(13, 1) == tuple((12 - i,) for i in range(13))
    for i, group in enumerate(at.groups(4, 3), start=1):
        assert group == tuple(range(12 - (i - 1) * 3, 12 - i * 3, -1))


@pytest.mark.parametrize(
    ("slices", "each", "said"),
    [
        (3, 5, "slices that share the network's 12 blocks, got 3 slices of 5, 15 blocks: take at most 4 blocks"),
        (16, 1, "got 16 slices of 1, 16 blocks: take at most 12 slices"),
        (13, 20, "got 13 slices of 20, 260 blocks: take fewer of both"),
    ],
)
def test_slices_beyond_the_blocks_are_refused(slices, each, said):
    with pytest.raises(UserError, match=said):
        Blocks("layers", 12, ()).groups(slices, each)


def test_targets_are_told_by_the_last_part_of_their_names():
    at = blocks(bert())
    assert at.targets(["dense"]) == ("attention.output.dense", "intermediate.dense", "output.dense")
    assert at.targets(["self.key", "query"]) == ("attention.self.key", "attention.self.query")
    said = "linear layers in the blocks of bert.encoder.layer, got none called 'q_proj': take some of attention.self.qu"
    with pytest.raises(UserError, match=said):
        at.targets(["q_proj"])
    with pytest.raises(UserError, match="none called 'uery'"):
        at.targets(["uery"])


def test_blocks_without_known_projections_ask_for_targets():
    plain = nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]), nn.Linear(4, 2))
    with pytest.raises(UserError, match="queries and values of a known name, got none in 0: name targets among 0"):
        blocks(plain).targets()


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match="a network with a list of transformer blocks, got Sequential: take a network"):
        blocks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    with pytest.raises(UserError, match="a list of blocks in the network, got 'layers': take a network with transfor"):
        blocks(nn.Linear(4, 2), "layers")


def test_of_several_lists_one_must_be_named():
    both = Towers()
    with pytest.raises(UserError, match="got several, left.vit.layers, right.vit.layers: name the one to train by"):
        blocks(both)
    assert blocks(both, "right.vit.layers").count == 3
    with pytest.raises(UserError, match=re.escape("got 'right.vit.layer': did you mean")):
        blocks(both, "right.vit.layer")


def test_heads_that_are_named_must_exist_outside_of_the_blocks():
    model = vit()
    at = blocks(model)
    assert head(model, at, ["vit.layernorm", "classifier"]) == ("vit.layernorm", "classifier")
    with pytest.raises(UserError, match="got 'pooler': take some of vit, classifier"):
        head(model, at, ["pooler"])
    with pytest.raises(UserError, match="got 'vit', which holds or lies in the blocks"):
        head(model, at, ["vit"])
    with pytest.raises(UserError, match="got 'vit.layers.1', which holds or lies in the blocks"):
        head(model, at, ["vit.layers.1"])


def test_a_tied_head_is_refused():
    model = gpt2()
    at = blocks(model)
    with pytest.raises(UserError, match="a head with weights of its own, got lm_head.weight, tied to others: set head"):
        head(model, at, ["lm_head"])
    masked = bert("BertForMaskedLM")
    with pytest.raises(UserError, match=r"got cls.predictions.decoder.weight.*, tied to others"):
        head(masked, blocks(masked))
    assert tied(vit(), ["classifier"]) == []


def test_statistics_of_batches_are_named():
    assert batch_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))) == ["1"]
    assert batch_norms(nn.BatchNorm1d(2, track_running_stats=False)) == []
    assert batch_norms(vit()) == []


def test_the_last_block_of_thirteen_is_not_the_first():
    at = blocks(vit(13))
    assert at.count == 13
    assert [at.groups(13, 1)[i][0] for i in (0, 2, 11, 12)] == [12, 10, 1, 0]
