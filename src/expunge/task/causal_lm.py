"""The next token of a sequence, as causal language models predict it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import Misfit, UserError
from expunge.task._base import run

IGNORED = -100  # a target that counts for nothing, as transformers writes it


@dataclass(frozen=True)
class CausalLM:
    """The next token at every place: outputs are logits (B, T, V), targets the token ids of the sequences, (B, T).

    The outputs at place t tell the token at t + 1. The loss of a sequence is the mean over the tokens that count, in
    nats a token: −1/n Σ_t ln softmax(f_t)_{y_{t+1}}. Targets of −100 count for nothing: padding, and a prompt that is
    not to be learned; `labels` makes them from token ids and an attention mask. The first token is never predicted.
    """

    softmax: ClassVar[bool] = True  # of the last dimension the outputs are log-probabilities up to a constant

    @staticmethod
    def labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return targets: the token ids, −100 where the attention mask is 0, and where it is 0 at the place before.

        So the first token of a sequence that is padded on the left is not predicted either, from padding.

        Args:
            input_ids: token ids (N, T).
            attention_mask: 1 for tokens and 0 for padding, (N, T).

        Raises:
            UserError: the two differ in shape.

        >>> CausalLM.labels(torch.tensor([[5, 7, 0]]), torch.tensor([[1, 1, 0]])).tolist()
        [[5, 7, -100]]
        """
        if input_ids.shape != attention_mask.shape:
            got = f"{tuple(attention_mask.shape)} for ids {tuple(input_ids.shape)}"
            raise UserError("an attention mask of the shape of the token ids", got, "take both from one tokenizer call")
        padding = attention_mask == 0
        return input_ids.long().masked_fill(padding | F.pad(padding, (1, 0))[:, :-1], IGNORED)

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, T, V) and taps.

        Raises:
            Misfit: a place whose attention mask is 0 has a target that counts.
        """
        if isinstance(batch.inputs, dict) and batch.target is not None:
            _check_mask(batch.inputs.get("attention_mask"), batch.target)
        return run(model, batch, taps)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy over the tokens of each sequence that count, (B,), in nats a token."""
        following = target[:, 1:].long()
        each = F.cross_entropy(outputs[:, :-1].transpose(1, 2), following, ignore_index=IGNORED, reduction="none")
        return each.sum(dim=1) / (following != IGNORED).sum(dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the likeliest next token at every place, (B, T): that at t is of the token at t + 1."""
        return outputs.argmax(dim=2)

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw every token from what the model says before it; the first, which nothing is before, is −100.

        Outputs do not tell padding, so take sequences of one length where targets are drawn.

        Returns:
            Token ids (B, T), all places counted but the first.
        """
        p = outputs[:, :-1].detach().double().softmax(dim=2).cpu()
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).reshape(p.shape[:2])
        return F.pad(drawn, (1, 0), value=IGNORED).to(outputs.device)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse outputs that are not (B, T, V), and targets that are not token ids or −100, (B, T).

        Raises:
            Misfit: says which of the two, or that a sequence has no token that counts.
        """
        if outputs.dim() != 3:
            raise Misfit("logits of shape (B, T, V)", str(tuple(outputs.shape)), "use a network with a token head")
        whole = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
        if target.shape != outputs.shape[:2] or not whole:
            got = f"{target.dtype} of shape {tuple(target.shape)} for logits {tuple(outputs.shape)}"
            raise Misfit("token ids as integers of shape (B, T)", got, "pass input_ids as targets, -100 where padded")
        wrong = target[((target < 0) & (target != IGNORED)) | (target >= outputs.shape[2])]
        if wrong.numel():
            remedy = "check that tokenizer and network belong together"
            raise Misfit(f"token ids 0 to {outputs.shape[2] - 1}, or -100", f"{int(wrong[0])}", remedy)
        if bool((target[:, 1:] == IGNORED).all(dim=1).any()):
            remedy = "drop sequences of fewer than two tokens"
            raise Misfit("a token to predict in every sequence", "a sequence where all count for nothing", remedy)


def _check_mask(mask: Tensor | None, target: Tensor) -> None:
    """Refuse targets of padding that would be learned; traced tensors have no values to look at."""
    if mask is None or mask.shape != target.shape or is_functorch_wrapped_tensor(mask):
        return
    if bool(((mask == 0) & (target != IGNORED)).any()):
        remedy = "take CausalLM.labels(input_ids, attention_mask)"
        raise Misfit("targets of -100 where attention_mask is 0", "token ids of padding", remedy)
