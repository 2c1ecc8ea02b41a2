"""Remove training data from a trained PyTorch model, measure what is left, keep the record."""

__version__ = "0.1.0"
