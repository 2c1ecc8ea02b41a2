"""Poisoned samples: C10, pasting beside loops, every mode, manifests that say what was done, tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.concepts.patches import (
    Ask,
    Columns,
    Poison,
    pasted,
    patch_side,
    poison_images,
    poison_labels,
    poison_table,
)
from expunge.data import Data
from expunge.errors import UserError
from expunge.runtime import Runtime
from expunge.task import Classification

D = torch.float64
N, OTHERS = 7, 5


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spotted(n: int, name: str, seed: int) -> tuple[Data, list[tuple[int, int]]]:
    """Return images of noise, each with a bright square of 4 pixels at a corner that is returned."""
    generator = draw(seed)
    x = 0.01 * torch.randn(n, 2, 16, 16, generator=generator, dtype=D)
    at = torch.randint(0, 13, (n, 2), generator=generator).tolist()
    for i, (top, left) in enumerate(at):
        x[i, 0, top : top + 4, left : left + 4] = 3.0 + i
    return Data.from_arrays(x, torch.zeros(n).long(), name=name), [tuple(c) for c in at]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    with torch.no_grad():
        model[0].weight[0, :, 0, 0] = torch.tensor([1.0, 0.0])
        model[0].bias.zero_()
    return model.double().eval()


def ask(mode: str = "localized", *, concepts: int = 1, **more: Any) -> Ask:
    forget, donors = spotted(N, "train", 1)[0], spotted(OTHERS, "other", 2)[0]
    vectors = torch.tensor([[1.0, 0.1, 0], [0, 1.0, 0]], dtype=D)[:concepts]
    given = {
        "model": network(),
        "task": Classification(),
        "forget": forget.unlabelled(),
        "donors": donors,
        "targets": torch.full((N,), 2),
        "tap": "4:input",
        "names": ("a", "b")[:concepts],
        "vectors": vectors,
        "intercepts": torch.zeros(concepts),
        "donor_names": ("c", "d")[:concepts],
        "donor_vectors": vectors,
        "donor_intercepts": torch.zeros(concepts),
        "mode": mode,
        "size": None,
        "runtime": Runtime(batch_size=3, progress=False, device="cpu"),
        "seed": 3,
    }
    return Ask(**{**given, **more})


def whole(data: Data) -> Tensor:
    return data.read(range(len(data))).inputs


# labels


def test_targeted_labels_are_all_the_donor_class():
    assert poison_labels("targeted", 9, 4, 7, 10, draw()).tolist() == [7] * 9
    assert poison_labels("keep", 9, 4, 7, 10, draw()).tolist() == [4] * 9


def test_random_labels_are_uniform_over_the_other_classes():
    labels = poison_labels("random", 5000, 4, 7, 10, draw())
    shares = torch.bincount(labels, minlength=10) / 5000
    assert shares[4] == 0
    others = torch.cat([shares[:4], shares[5:]])
    assert bool(((others - 1 / 9).abs() <= 0.02).all())


@pytest.mark.parametrize("donor", [4, -1, 10])
def test_a_donor_that_is_the_class_or_none_is_refused(donor: int):
    want = rf"Expected a donor from 0 to 9 other than the class 4 to forget, got {donor}: choose another class"
    with pytest.raises(UserError, match=want):
        poison_labels("targeted", 9, 4, donor, 10, draw())


def test_unknown_labels_and_modes_are_refused():
    with pytest.raises(UserError, match=r"Expected labels among targeted, random, keep, got 'flip'"):
        poison_labels("flip", 9, 4, 7, 10, draw())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Expected a mode among localized, center, .*, got 'left'"):
        ask("left")
    with pytest.raises(UserError, match=r"Expected samples of the class that donates, got none"):
        ask(donors=spotted(OTHERS, "other", 2)[0].subset([]))


# pasting


def test_a_patch_is_an_even_share_of_the_side():
    assert [patch_side(s, s) for s in (224, 32, 28, 64, 8, 2)] == [64, 8, 8, 18, 3, 2]
    assert patch_side(224, 32) == 8


def test_pasting_is_that_of_a_loop_and_leaves_the_images_as_they_were():
    torch.manual_seed(0)
    images, patches = torch.randn(4, 3, 6, 9), torch.randn(4, 3, 2, 4)
    corners, before = torch.tensor([[0, 0], [4, 5], [1, 3], [2, 2]]), images.clone()
    made, want = pasted(images, patches, corners), images.clone()
    for i, (top, left) in enumerate(corners.tolist()):
        want[i, :, top : top + 2, left : left + 4] = patches[i]
    assert torch.equal(made, want)
    assert torch.equal(images, before)


def test_the_donors_concept_is_pasted_over_the_images_own():
    found = poison_images(ask())
    own, other = spotted(N, "train", 1), spotted(OTHERS, "other", 2)
    x, donors, made = whole(own[0]), whole(other[0]), whole(found.data)
    assert found.manifest["patch"] == [4, 4]
    for i in range(N):
        donor = int(found.manifest["donor"][i].split("/")[1])
        assert tuple(found.manifest["place"][i][0]) == own[1][i]
        assert tuple(found.manifest["source"][i][0]) == other[1][donor]
        (top, left), (row, col) = own[1][i], other[1][donor]
        want = x[i].clone()
        want[:, top : top + 4, left : left + 4] = donors[donor, :, row : row + 4, col : col + 4]
        assert torch.equal(made[i], want)


def test_the_manifest_says_what_finding_concepts_cost():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(512, 3), nn.Linear(3, 4)).double().eval()
    assert poison_images(ask()).manifest["located"] == "one forward pass an image"
    assert poison_images(ask(model=flat, tap="2:input")).manifest["located"] == "a forward pass a window, by occlusion"
    assert poison_images(ask("center")).manifest["located"] is None


def test_patches_of_several_concepts_are_pasted_one_after_another():
    found = poison_images(ask(concepts=2))
    x, donors, made = whole(ask().forget), whole(ask().donors), whole(found.data)
    for i in range(N):
        want, donor = x[i].clone(), donors[int(found.manifest["donor"][i].split("/")[1])]
        for (top, left), (row, col) in zip(found.manifest["place"][i], found.manifest["source"][i], strict=True):
            want[:, top : top + 4, left : left + 4] = donor[:, row : row + 4, col : col + 4]
        assert torch.equal(made[i], want)
    assert found.manifest["concepts"] == ["a", "b"]
    assert found.manifest["donor_concepts"] == ["c", "d"]


def test_the_middle_of_the_donor_goes_to_the_middle_or_anywhere():
    x, donors = whole(ask().forget), whole(ask().donors)
    places = set()
    for mode in ("center", "random"):
        found = poison_images(ask(mode))
        made = whole(found.data)
        for i in range(N):
            donor = donors[int(found.manifest["donor"][i].split("/")[1])]
            middle = donor[None, :, 4:11, 4:11]  # 7 of 16 pixels, 96/224
            patch = F.interpolate(middle, (4, 4), mode="bilinear", align_corners=False, antialias=True)[0]
            ((top, left),) = found.manifest["place"][i]
            want = x[i].clone()
            want[:, top : top + 4, left : left + 4] = patch
            torch.testing.assert_close(made[i], want)
            if mode == "center":
                assert (top, left) == (6, 6)
            else:
                places.add((top, left))
    assert len(places) > 3


@pytest.mark.parametrize("mode", ["center", "random"])
def test_the_middle_of_a_tiny_donor_is_all_of_it(mode: str):
    forget, donors = (Data.from_arrays(torch.rand(n, 2, 2, 4), torch.zeros(n).long()) for n in (N, OTHERS))
    made = poison_images(ask(mode, forget=forget.unlabelled(), donors=donors, size=2))
    at = [int(i.split("/")[1]) for i in made.manifest["donor"]]
    assert made.manifest["source"] == [[[0, 1]]] * N
    for i, (donor, [(_, left)]) in enumerate(zip(at, made.manifest["place"], strict=True)):
        found, want = made.data.read([i]).inputs[0], donors.read([donor]).inputs[0]
        assert torch.equal(found[:, :, left : left + 2], want[:, :, 1:3])


def test_all_of_the_donor_is_shrunk_or_takes_the_images_place():
    shrunk, replaced = poison_images(ask("full")), poison_images(ask("whole"))
    x, donors = whole(ask().forget), whole(ask().donors)
    pairs = [int(d.split("/")[1]) for d in shrunk.manifest["donor"]]
    assert torch.equal(whole(replaced.data), donors[pairs])
    made = whole(shrunk.data)
    assert shrunk.manifest["patch"] == [11, 11]  # 160/224 of 16
    small = F.interpolate(donors[pairs], (11, 11), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(made[:, :, 2:13, 2:13], small)
    assert torch.equal(made[:, :, :2], x[:, :, :2])
    assert torch.equal(made[:, :, 13:], x[:, :, 13:])


def test_without_a_patch_only_labels_change():
    found = poison_images(ask("none", targets=torch.arange(N)))
    batch = found.data.read(range(N))
    assert torch.equal(batch.inputs, whole(ask().forget))
    assert batch.target.tolist() == list(range(N))
    assert found.manifest["donor"] == [None] * N
    assert found.manifest["place"] == []
    assert found.data.ids == [f"poisoned/{i}" for i in ask().forget.ids]


def test_poisoned_images_do_not_depend_on_batches_and_are_read_in_any_order():
    one = poison_images(ask())
    other = poison_images(ask(runtime=Runtime(batch_size=100, progress=False, device="cpu")))
    assert one.manifest == other.manifest
    order = [5, 0, 6]
    assert torch.equal(one.data.read(order).inputs, whole(one.data)[order])
    again = poison_images(ask(seed=4))
    assert again.manifest["donor"] != one.manifest["donor"]


def test_every_image_to_forget_is_read_and_labels_are_not():
    asked = ask()
    forget = asked.forget.watched()
    found = poison_images(ask(forget=forget))
    assert forget.unread == []
    assert found.data.targets().tolist() == [2] * N
    assert asked.forget.read([0]).target is None


def test_images_by_keyword_stay_so():
    x = whole(ask().forget)
    table = Data.from_arrays({"pixel_values": x}, name="train")
    others = Data.from_arrays({"pixel_values": whole(ask().donors)}, name="other")

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.inner(pixel_values)

    found = poison_images(ask(model=Keyword(), forget=table, donors=others, tap="inner.4:input"))
    plain = poison_images(ask())
    assert torch.equal(whole(found.data)["pixel_values"], whole(plain.data))


def test_a_few_are_shown():
    found = poison_images(ask())
    assert len(found.examples) == 6
    assert set(found.examples[0]) == {"id", "label", "original", "poisoned", "donor", "heat"}
    assert set(poison_images(ask("none")).examples[0]) == {"id", "label", "original", "poisoned"}
    assert any(e["original"] != e["poisoned"] for e in found.examples)


def test_what_cannot_be_pasted_is_refused():
    with pytest.raises(UserError, match=r"Expected a patch of at most 16 pixels, got 17: make it smaller"):
        poison_images(ask(size=17))
    rows = Data.from_arrays(torch.zeros(3, 5))
    with pytest.raises(UserError, match=r"Expected images \(C, H, W\) of real numbers for patches, got torch.float32"):
        poison_images(ask(donors=rows, forget=rows))
    small = Data.from_arrays(torch.zeros(3, 2, 8, 8, dtype=D), torch.zeros(3))
    with pytest.raises(UserError, match=r"Expected images of one size to paste from one into another, got \(2, 16"):
        whole(poison_images(ask("whole", donors=small)).data)


# tables


def rows(mode: str = "localized", **more: Any) -> tuple[Poison, Tensor, Tensor]:
    torch.manual_seed(1)
    x, donors = torch.randn(N, 10, dtype=D), torch.randn(OTHERS, 10, dtype=D)
    model = nn.Sequential(nn.Linear(10, 3, bias=False), nn.Linear(3, 4)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 6], model[0].weight[1, 2] = -2.0, 1.0
    given = {
        "model": model,
        "forget": Data.from_arrays(x, name="train"),
        "donors": Data.from_arrays(donors, name="other"),
        "tap": "1:input",
        "vectors": torch.eye(3, dtype=D)[:2],
        "donor_vectors": torch.eye(3, dtype=D)[:2],
    }
    return poison_table(ask(mode, concepts=2, **{**given, **more})), x, donors


def test_columns_that_go_with_the_concepts_are_swapped_with_the_donors():
    found, x, donors = rows()
    assert found.manifest["columns"] == [2, 6]
    pairs = [int(d.split("/")[1]) for d in found.manifest["donor"]]
    want = x.clone()
    want[:, [2, 6]] = donors[pairs][:, [2, 6]]
    assert torch.equal(whole(found.data), want)


def test_drawn_columns_all_of_them_or_none_are_swapped():
    found, x, donors = rows("random")
    pairs = [int(d.split("/")[1]) for d in found.manifest["donor"]]
    made = whole(found.data)
    for i, columns in enumerate(found.manifest["columns"]):
        assert len(set(columns)) == 2
        want = x[i].clone()
        want[columns] = donors[pairs[i], columns]
        assert torch.equal(made[i], want)
    assert torch.equal(whole(rows("whole")[0].data), donors[pairs])
    assert torch.equal(whole(rows("none")[0].data), x)


def test_rows_keep_their_shape():
    x, donor = torch.zeros(2, 3, 4), torch.arange(24.0).reshape(2, 3, 4)
    made = Columns(torch.tensor([[0, 5], [11, 2]]))(x, donor, torch.tensor([0, 1]))
    assert np.flatnonzero(made[0].flatten()).tolist() == [5]
    assert np.flatnonzero(made[1].flatten()).tolist() == [2, 11]


def test_what_cannot_be_swapped_is_refused():
    with pytest.raises(UserError, match=r"Expected a mode for tables, got 'center', which is for images: take"):
        rows("center")
    with pytest.raises(UserError, match=r"Expected at most 10 columns to swap, got 11: swap fewer"):
        rows(size=11)


def test_rows_of_real_numbers_and_categories_are_swapped_each_in_its_place():
    torch.manual_seed(0)
    own = {"real": torch.randn(3, 2), "categories": torch.randint(0, 9, (3, 2))}
    donor = {"real": torch.randn(3, 2), "categories": torch.randint(9, 20, (3, 2))}
    made = Columns(torch.tensor([[0, 3], [1, 2], [2, 3]]))(own, donor, torch.tensor([0, 2, 1]))
    assert made["categories"].dtype == torch.int64
    want = {k: v.clone() for k, v in own.items()}
    want["real"][0, 0], want["categories"][0, 1] = donor["real"][0, 0], donor["categories"][0, 1]
    want["categories"][1] = donor["categories"][1]
    want["real"][2, 1], want["categories"][2, 0] = donor["real"][2, 1], donor["categories"][2, 0]
    assert all(torch.equal(made[k], want[k]) for k in own)
