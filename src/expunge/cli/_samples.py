"""Forgotten images as data addresses, for reports that are asked to show them."""

from __future__ import annotations

import base64
import io

from matplotlib.image import imsave
from torch import Tensor

from expunge.data import Data

MOST = 12


def images(data: Data, most: int = MOST, column: str | None = None) -> list[dict[str, str]]:
    """Return the first samples as PNG data addresses with id and label; none where inputs are not images.

    Args:
        data: inputs (N, 1, H, W) or (N, 3, H, W), scaled to their own range.
        most: how many to show.
        column: a column whose value is added to the label.

    Returns:
        Rows with ``id``, ``label`` and ``image``.
    """
    some = data.subset(data.ids[:most])
    batch = some.read(range(len(some)))
    if not isinstance(batch.inputs, Tensor) or batch.inputs.dim() != 4 or batch.inputs.shape[1] not in (1, 3):
        return []
    rows = []
    for at, name in enumerate(some.ids):
        image = batch.inputs[at].float()
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
        pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
        out = io.BytesIO()
        imsave(out, pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", format="png")
        label = "" if batch.target is None else str(batch.target[at].item())
        if column is not None:
            label += f" (truly {some.column(column)[at]})"
        address = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
        rows.append({"id": name, "label": label, "image": address})
    return rows
