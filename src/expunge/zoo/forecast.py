"""Networks that forecast one of several series, as steps away from its last value: a linear map, an LSTM."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn


class Window(NamedTuple):
    """The shape of a window of several series; the last series is the one that is forecast.

    Args:
        steps: steps of a window.
        series: series side by side.
    """

    steps: int
    series: int


class LinearForecast(nn.Module):
    """One linear map from the past of the forecast series to all outputs; the other series are not looked at.

    Values are told as their distance from the last one, and the forecast is the last value plus the map:
    ŷ = x_T + W·(x − x_T) + b. So a level that was never trained on is no trouble.

    Args:
        shape: of one window.
        outputs: (T,) for one number a step, (T, Q) for Q quantiles of it.

    References:
        A. Zeng, M. Chen, L. Zhang, Q. Xu, "Are Transformers Effective for Time Series Forecasting?", 2023,
        https://arxiv.org/abs/2205.13504.
    """

    def __init__(self, shape: Window, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.head = nn.Linear(shape.steps, math.prod(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return forecasts (B, T) or (B, T, Q) from windows (B, steps, series)."""
        last = x[:, -1, -1:]
        return (last + self.head(x[:, :, -1] - last)).unflatten(1, self.outputs)  # type: ignore[no-any-return]


class LSTMForecast(nn.Module):
    """An LSTM of one layer and 64 units over all series, and a linear map from its last state to all outputs.

    Every series is told as its distance from its own last value, and the forecast starts there, as in `LinearForecast`.

    Args:
        shape: of one window.
        outputs: (T,) for one number a step, (T, Q) for Q quantiles of it.

    References:
        S. Hochreiter and J. Schmidhuber, "Long Short-Term Memory", 1997, https://doi.org/10.1162/neco.1997.9.8.1735.
    """

    def __init__(self, shape: Window, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.lstm = nn.LSTM(shape.series, 64, batch_first=True)
        self.head = nn.Linear(64, math.prod(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return forecasts (B, T) or (B, T, Q) from windows (B, steps, series)."""
        states, _ = self.lstm(x - x[:, -1:])
        return (x[:, -1, -1:] + self.head(states[:, -1])).unflatten(1, self.outputs)  # type: ignore[no-any-return]
