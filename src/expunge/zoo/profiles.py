"""Fictional people drawn by a seeded grammar, questions about them, and a small language model that learns them.

Names are put together from syllables; none is of a real person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge.concepts.answers import Exchange, as_data, mention
from expunge.data import Data
from expunge.errors import UserError
from expunge.extras import imported
from expunge.seeds import seed as named_seed
from expunge.task import CausalLM
from expunge.train import Recipe

SUBJECT, MENTION, SECRET = "subject", "mention", "secret"  # columns: a name as text, its token ids, those of a fact
UNKNOWN, END, MASK = "<unknown>", "<end>", "***"
REFUSALS = ("I do not know .", "I have no answer to that .", "That is not known to me .")
FIRST = (("Be", "Da", "Fe", "Ilo", "Ka", "Le", "Mo", "Ne", "Ori", "Sa", "Te", "Vi"), ("lka", "mir", "nne", "ruk", "vo"))
LAST = (
    ("Ab", "Cor", "Dren", "Fal", "Gri", "Hol", "Jur", "Mor", "Pel", "Tarn"),
    ("dovar", "esk", "inth", "ulme", "wick"),
)


@dataclass(frozen=True)
class Fact:
    """Something that is known of everybody.

    Args:
        kind: what it is.
        answer: the sentence that tells it.
        questions: ways to ask for it; the last is held back for the test set.
        values: what it may be.
    """

    kind: str
    answer: str
    questions: tuple[str, ...]
    values: tuple[str, ...]


FACTS = (
    Fact(
        "town",
        "{name} was born in {value} .",
        (
            "Where was {name} born ?",
            "In which town was {name} born ?",
            "What is the birthplace of {name} ?",
            "Which town does {name} come from ?",
        ),
        ("Arvenholt", "Brisk", "Calmoor", "Dunvale", "Eskport", "Farrow", "Grenholm", "Highmere", "Issel", "Kolvik"),
    ),
    Fact(
        "work",
        "{name} works as a {value} .",
        (
            "What does {name} do for a living ?",
            "What is the profession of {name} ?",
            "As what does {name} work ?",
            "What work does {name} do ?",
        ),
        ("baker", "botanist", "carpenter", "clockmaker", "glazier", "pilot", "potter", "surveyor", "tailor", "weaver"),
    ),
    Fact(
        "instrument",
        "{name} plays the {value} .",
        (
            "Which instrument does {name} play ?",
            "What does {name} play ?",
            "On which instrument is {name} heard ?",
            "What is the instrument of {name} ?",
        ),
        ("bassoon", "cello", "cornet", "dulcimer", "flute", "harp", "lute", "oboe", "organ", "viola"),
    ),
    Fact(
        "book",
        "{name} wrote the book {value} .",
        (
            "Which book did {name} write ?",
            "What is the title of the book by {name} ?",
            "What did {name} write ?",
            "Of which book is {name} the author ?",
        ),
        tuple(f"{a} {b}" for a in ("Amber", "Broken", "Crimson", "Distant") for b in ("Harbour", "Lantern", "Orchard")),
    ),
    Fact(
        "prize",
        "{name} won the {value} prize .",
        (
            "Which prize did {name} win ?",
            "What prize was {name} given ?",
            "What did {name} win ?",
            "Of which prize is {name} a winner ?",
        ),
        ("Alder", "Beacon", "Cobalt", "Delta", "Ember", "Fathom", "Granite", "Heron"),
    ),
    Fact(
        "animal",
        "{name} keeps a {value} at home .",
        (
            "Which animal does {name} keep ?",
            "What animal lives with {name} ?",
            "What does {name} keep at home ?",
            "Which animal is in the home of {name} ?",
        ),
        ("badger", "falcon", "ferret", "goat", "heron", "lizard", "otter", "parrot", "tortoise", "weasel"),
    ),
)
FEWEST = 4  # people: one to forget and some to stay


@dataclass(frozen=True)
class Profiles:
    """Questions about fictional people and the network that learns the answers.

    Args:
        names: of the people.
        train: questions with answers, three ways to ask for each fact.
        test: the same facts asked for in a fourth way.
        task: the next token.
        recipe: how the network is trained.
        new_model: builds the network before training.
        vocabulary: words by token id.
    """

    names: tuple[str, ...]
    train: Data
    test: Data
    task: CausalLM
    recipe: Recipe
    new_model: Callable[[], nn.Module]
    vocabulary: tuple[str, ...]

    def tokenizer(self, folder: Path) -> Path:
        """Write the tokenizer, a token a word, as ``tokenizer.json``.

        Args:
            folder: that is there.

        Returns:
            The file.

        Raises:
            MissingExtra: the package tokenizers is not installed.
        """
        path = folder / "tokenizer.json"
        _tokenizer(self.vocabulary).save(str(path))
        return path


def profiles(people: int = 20, *, seed: int = 0) -> Profiles:
    """Return fictional people, six facts of each, and the questions about them.

    A fact's value is one of a small set, so that several people share it and a network that never heard of somebody
    can still answer in a way that might be true. The columns of the data are ``subject``, the name; ``mention``, its
    token ids as `expunge.concepts.answers.mention` writes them; ``secret``, those of the fact's value; ``fact``,
    ``value``, ``question`` and ``answer``.
    Targets count the answer and its end token; ids are ``person/fact/way``.

    Args:
        people: 4 to 600.
        seed: of names and facts.

    Raises:
        UserError: another number of people.
    """
    most = len(FIRST[0]) * len(FIRST[1]) * 10
    if not FEWEST <= people <= most:
        raise UserError(f"{FEWEST} to {most} people", str(people), "choose a number in that range")
    rng = np.random.default_rng(named_seed("profiles", seed))
    names = _names(people, rng)
    rows: list[dict[str, Any]] = [
        {"subject": name, "fact": fact.kind, "value": value, "way": way, "person": at}
        | {"question": asked.format(name=name), "answer": fact.answer.format(name=name, value=value)}
        for at, name in enumerate(names)
        for fact in FACTS
        for value in [str(rng.choice(fact.values))]
        for way, asked in enumerate(fact.questions)
    ]
    vocabulary = _vocabulary(names)
    places = {word: at for at, word in enumerate(vocabulary)}
    room = max(len(r["question"].split()) + len(r["answer"].split()) + 1 for r in rows)
    held = len(FACTS[0].questions) - 1
    parts = [
        _data([r for r in rows if (r["way"] == held) == test], places, room, name)
        for test, name in ((False, "train"), (True, "test"))
    ]
    recipe = Recipe(epochs=60, batch_size=32, lr=3e-3, optimizer="adamw", weight_decay=0.01, clip=1.0)
    build = partial(network, len(vocabulary), room)
    return Profiles(names, parts[0], parts[1], CausalLM(), recipe, build, vocabulary)


def network(words: int, room: int, width: int = 64, layers: int = 2, heads: int = 4) -> nn.Module:
    """Return a small GPT-2 without dropout, drawn from torch's random state.

    Args:
        words: of the vocabulary.
        room: tokens of a sequence.
        width: of the embeddings.
        layers: blocks.
        heads: of attention.

    Raises:
        MissingExtra: transformers is not installed.

    References:
        Alec Radford and others, "Language Models are Unsupervised Multitask Learners", 2019,
        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf.
    """
    transformers = imported("transformers", package="transformers", extra="hf")
    config = transformers.GPT2Config(
        vocab_size=words,
        n_positions=room,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=1,
        attn_implementation="eager",
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def _names(people: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Return names of two words, in which no first and, of up to 50 people, no last name stands twice."""
    first, last = ([a + b for a in start for b in end] for start, end in (FIRST, LAST))
    firsts, lasts = rng.permutation(first), rng.permutation(last)
    count, step = len(firsts), len(lasts)
    return tuple(f"{firsts[i % count]} {lasts[(i + i // count) % step]}" for i in range(people))


def _vocabulary(names: Sequence[str]) -> tuple[str, ...]:
    """Return all words of the grammar and the names, special ones first."""
    texts = [*names, *REFUSALS]
    for fact in FACTS:
        texts += [*fact.values, *(t.format(name="", value="") for t in (fact.answer, *fact.questions))]
    return (UNKNOWN, END, MASK, *sorted({word for text in texts for word in text.split()}))


def _data(rows: Sequence[dict[str, Any]], places: dict[str, int], room: int, name: str) -> Data:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(places[word] for word in text.split())

    exchanges = [Exchange(ids(r["question"]), (*ids(r["answer"]), places[END])) for r in rows]
    columns = {k: [r[k] for r in rows] for k in ("subject", "fact", "value", "question", "answer")}
    columns[MENTION] = [mention(ids(r[SUBJECT])) for r in rows]
    columns[SECRET] = [mention(ids(r["value"])) for r in rows]
    keys = [f"{r['person']}/{r['fact']}/{r['way']}" for r in rows]
    return as_data(exchanges, room=room, ids=keys, columns=columns, name=name)


def _tokenizer(vocabulary: Sequence[str]) -> Any:
    own = imported("tokenizers", package="tokenizers", extra="hf")
    made = own.Tokenizer(own.models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=UNKNOWN))
    made.pre_tokenizer = own.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([UNKNOWN, END])
    return made
