"""Papers that more than one method comes from."""

from __future__ import annotations

from expunge.method import Reference

GOLATKAR_2020 = Reference(
    "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
    "Aditya Golatkar and Alessandro Achille and Stefano Soatto",
    2020,
    "https://arxiv.org/abs/1911.04933",
    "CVPR",
)
"""Of `finetune`, `random_label` and `fisher_forgetting`."""

JIA_2023 = Reference(
    "Model Sparsity Can Simplify Machine Unlearning",
    "Jinghan Jia and Jiancheng Liu and Parikshit Ram and Yuguang Yao and Gaowen Liu and Yang Liu and "
    "Pranay Sharma and Sijia Liu",
    2023,
    "https://arxiv.org/abs/2304.04934",
    "NeurIPS",
)
"""Of `pruned` and `l1_sparse`."""

KURMANJI_2023 = Reference(
    "Towards Unbounded Machine Unlearning",
    "Meghdad Kurmanji and Peter Triantafillou and Jamie Hayes and Eleni Triantafillou",
    2023,
    "https://arxiv.org/abs/2302.09880",
    "NeurIPS",
)
"""Of `scrub` and `neg_grad_plus`."""
