"""Books of sharded training without any training, for tests of what is live, served and reached."""

import numpy as np

from expunge.exact.book import BASE, Book, Stage, samples_digest, stage_name

ROTATIONS = ((0, 1, 2, 3), (3, 0, 1, 2), (2, 3, 0, 1), (1, 2, 3, 0))


def blank(shards=1, orders=ROTATIONS, per=3, failure="all"):
    """Return a book of ``per`` samples a slice, ids ``shard/slice/number``, before training."""
    slices = len(orders[0])
    ids = [f"{s}/{j}/{n}" for s in range(shards) for j in range(slices) for n in range(per)]
    at = np.repeat(np.arange(shards * slices), per).astype(np.int32)
    config = {"kind": "s3t", "shards": shards, "slices": slices, "sequences": (orders,) * shards, "seed": 0}
    return Book.opened({**config, "failure": failure}, b"key", ids, at)


def stage(book, shard, prefix, **other):
    """Return a stage that read what stays of its slices."""
    reads = book.inside(shard, prefix)
    parents = (stage_name(shard, prefix[:-1]),) if len(prefix) > 1 else (BASE,)
    facts = {"samples": samples_digest(book.id[reads]), "n": int(reads.sum()), "tensors": "0" * 64, "seed": 1}
    facts |= {"parents": parents, "steps": 1, "layers": ("all",)}
    return Stage(shard=shard, prefix=tuple(prefix), **facts | other)


def filled(*args, **kwargs):
    """Return a book with every stage of every sequence trained."""
    book = blank(*args, **kwargs)
    for shard, orders in enumerate(book.sequences):
        for order in orders:
            for k in range(1, len(order) + 1):
                if stage_name(shard, order[:k]) not in book.stages:
                    book = book.trained(stage(book, shard, order[:k]))
    return book
