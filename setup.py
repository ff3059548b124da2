"""Packaging of moec_fairseq; tool settings live in pyproject.toml, tested versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")

setup(
    name="moec-fairseq",
    version="0.2.0",
    description="MoEC: Mixture of Expert Clusters, as a fairseq plug-in",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="moec_fairseq contributors",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["moec_fairseq", "moec_fairseq.*"]),
    package_data={"moec_fairseq": ["py.typed", "report/page.html"]},
    entry_points={"console_scripts": ["moec=moec_fairseq.__main__:main"]},
    python_requires=">=3.10,<3.14",  # with 3.14, hydra 1.3 cannot read a command line
    install_requires=[
        # fairseq 0.12.2 does not import on Python 3.11; fairseq-fixed has the same import name and works there.
        'fairseq-fixed==0.12.3.1; python_version >= "3.11"',
        'fairseq==0.12.2; python_version < "3.11"',
        # fairseq 0.12.2 uses np.float, which numpy 1.24 removed.
        'numpy>=1.21.3; python_version >= "3.11"',
        'numpy>=1.21.3,<1.24; python_version < "3.11"',
        "torch>=1.13",
        "backports.zstd>=1.0",
        "fairscale==0.4.13",
        "filelock>=3.4",
        "jinja2>=3.0",
        "lxml>=4.9",
        "matplotlib>=3.6",
        "polib>=1.2",
        "pyyaml>=5.4",
        "regex>=2022.1.18",
        "sacrebleu>=2.3",
        "sacremoses>=0.1",
        "scikit-learn>=1.0",
        "scipy>=1.7",
        "sentencepiece>=0.1.99",
        "tabulate>=0.9",
        "tensorboardX>=2.6",
        "tqdm>=4.60",
    ],
    extras_require={
        "comet": ["unbabel-comet>=2.2"],
        "identify-language": ['py3langid>=0.4; python_version >= "3.11"'],  # wants NumPy 2
        "mtdata": ["mtdata>=0.5"],
        "parquet": ["pyarrow>=12"],
        "dev": [
            "hypothesis>=6",
            "mypy>=1.8",
            'py3langid>=0.4; python_version >= "3.11"',
            "pyarrow>=12",
            "pytest>=7",
            "pytest-xdist>=3.2",
            "ruff>=0.5",
            "types-pyyaml",
            "types-tabulate",
            "types-tqdm",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
