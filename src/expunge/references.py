"""Papers that more than one method, objective or anchor comes from."""

from __future__ import annotations

from expunge.part import Reference

CAO_2015 = Reference(
    "Towards Making Systems Forget with Machine Unlearning",
    "Yinzhi Cao and Junfeng Yang",
    2015,
    "https://doi.org/10.1109/SP.2015.35",
    "IEEE Symposium on Security and Privacy",
)
"""Of `retrain` and `fresh_rows`."""

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

GRAVES_2021 = Reference(
    "Amnesiac Machine Learning",
    "Laura Graves and Vineel Nagisetty and Vijay Ganesh",
    2021,
    "https://arxiv.org/abs/2010.10981",
    "AAAI",
)
"""Of `amnesiac` and the objective `random_label`."""

CHUNDAWAT_2023 = Reference(
    "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher",
    "Vikram S Chundawat and Ayush K Tarun and Murari Mandal and Mohan Kankanhalli",
    2023,
    "https://arxiv.org/abs/2205.08096",
    "AAAI",
)
"""Of `bad_teacher`, the method and the objective."""

THUDI_2022 = Reference(
    "Unrolling SGD: Understanding Factors Influencing Machine Unlearning",
    "Anvith Thudi and Gabriel Deza and Varun Chandrasekaran and Nicolas Papernot",
    2022,
    "https://arxiv.org/abs/2109.13398",
    "EuroS&P",
)
"""Of `gradient_ascent` and the objective `ascent`."""

TRIPPA_2024 = Reference(
    "∇τ: Gradient-based and Task-Agnostic machine Unlearning",
    "Daniel Trippa and Cesare Campagnano and Maria Sofia Bucarelli and Gabriele Tolomei and Fabrizio Silvestri",
    2024,
    "https://arxiv.org/abs/2403.14339",
)
"""Of `nabla_tau` and the objective `tau_hinge`."""

ZENO_2018 = Reference(
    "Task Agnostic Continual Learning Using Online Variational Bayes",
    "Chen Zeno and Itay Golan and Elad Hoffer and Daniel Soudry",
    2018,
    "https://arxiv.org/abs/1803.10123",
)
"""Of Bayesian gradient descent, by which `distruction` prepares."""

KIRKPATRICK_2017 = Reference(
    "Overcoming catastrophic forgetting in neural networks",
    "James Kirkpatrick and Razvan Pascanu and Neil Rabinowitz and Joel Veness and Guillaume Desjardins and "
    "Andrei A. Rusu and Kieran Milan and John Quan and Tiago Ramalho and Agnieszka Grabska-Barwinska and "
    "Demis Hassabis and Claudia Clopath and Dharshan Kumaran and Raia Hadsell",
    2017,
    "https://arxiv.org/abs/1612.00796",
    "PNAS",
)
"""Of the anchor `fisher`: elastic weight consolidation."""

LI_2018 = Reference(
    "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    "Xuhong Li and Yves Grandvalet and Franck Davoine",
    2018,
    "https://arxiv.org/abs/1802.01483",
    "ICML",
)
"""Of the anchor `l2sp`."""

TARUN_2023 = Reference(
    "Deep Regression Unlearning",
    "Ayush K Tarun and Vikram S Chundawat and Murari Mandal and Mohan Kankanhalli",
    2023,
    "https://arxiv.org/abs/2210.08196",
    "ICML",
)
"""Of `blindspot` and `gaussian_amnesiac`."""

LIU_2025 = Reference(
    "Efficient Machine Unlearning via Influence Approximation",
    "Jiawei Liu and Chenwang Wu and Defu Lian and Enhong Chen",
    2025,
    "https://arxiv.org/abs/2507.23257",
)
"""Of `iau` and of the penalty `expunge.penalties.GradientNorm`."""

KOH_2017 = Reference(
    "Understanding Black-box Predictions via Influence Functions",
    "Pang Wei Koh and Percy Liang",
    2017,
    "https://arxiv.org/abs/1703.04730",
    "ICML",
)
"""Of `influence`."""

CHOWDHURY_2025 = Reference(
    "Towards Scalable Exact Machine Unlearning Using Parameter-Efficient Fine-Tuning",
    "Somnath Basu Roy Chowdhury and Krzysztof Choromanski and Arijit Sehanobish and Avinava Dubey and "
    "Snigdha Chaturvedi",
    2025,
    "https://arxiv.org/abs/2406.16257",
    "ICLR",
)
"""Of `s3t`."""

CHANG_2024 = Reference(
    "Class Machine Unlearning for Complex Data via Concepts Inference and Data Poisoning",
    "Wenhan Chang and Tianqing Zhu and Heng Xu and Wenjian Liu and Wanlei Zhou",
    2024,
    "https://arxiv.org/abs/2405.15662",
)
"""Of `concept_poisoning` and `concept_masking`."""

SHEN_2024 = Reference(
    "Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models",
    "Shaofei Shen and Chenhao Zhang and Yawen Zhao and Alina Bialkowski and Weitong Tony Chen and Miao Xu",
    2024,
    "https://arxiv.org/abs/2404.00506",
    "ICLR",
)
"""Of `laf` and `laf_r`."""
