"""What methods that make or move inputs have in common: inputs must be one tensor of real numbers."""

from __future__ import annotations

from torch import Tensor

from expunge.errors import UserError
from expunge.sources import Inputs


def real(inputs: Inputs, method: str) -> Tensor:
    """Return the inputs if they are one tensor of real numbers, to which noise can be added.

    Args:
        inputs: of a batch.
        method: the name of who asks.

    Raises:
        UserError: a dict of tensors, or integers such as tokens.
    """
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs
    got = f"inputs of {inputs.dtype}" if isinstance(inputs, Tensor) else f"a dict with {', '.join(inputs)}"
    remedy = "choose a method that leaves inputs as they are"
    raise UserError(f"inputs that are one tensor of real numbers, which {method} adds noise to", got, remedy)
