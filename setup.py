"""Packaging of keyseg_mm. configs/ and tools/ travel in the wheel as keyseg_mm/.mim/, where mmengine looks for them."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'keyseg_mm/__init__.py').read_text())[1]

# mmengine, mmcv and mmseg come with one of the two stacks; the core pins neither.
STACKS = {
    # mmsegmentation 1.2.2 imports ftfy and regex without declaring them; mmengine 0.10.7 needs pkg_resources, which
    # setuptools 81 and later warn of or lack
    'openmmlab': ['mmsegmentation>=1.2.2', 'mmengine>=0.10.5', 'mmcv>=2.0.1,<2.2', 'ftfy', 'regex', 'setuptools<81'],
    'onedl': ['onedl-mmsegmentation>=1.4.2', 'onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6'],
}

setup(
    name='keyseg-mm',
    version=VERSION,
    description='Protects mmsegmentation models with a secret key, by encrypted feature maps',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['keyseg_mm*']),
    package_data={
        'keyseg_mm': ['py.typed', '.mim/**/*', 'audit/report/*.j2', 'compare/*.j2', 'compare/*.json', 'demo/*.in']
    },
    include_package_data=False,
    install_requires=['torch>=2.1', 'numpy>=1.23', 'cryptography>=50', 'tqdm>=4.60', 'scipy>=1.10', 'jinja2>=3.1'],
    extras_require={
        **STACKS,
        'keyring': ['keyring>=24'],
        'safetensors': ['safetensors>=0.4'],
        'onnx': ['onnx>=1.16'],
        'dask': ['distributed>=2024.1'],
        'completion': ['argcomplete>=3'],
        'dev': [
            'pytest>=8',
            'pytest-randomly>=3.16',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.6',
            'hypothesis>=6.100',
            'ruff>=0.6',
            'mypy>=1.11',
            'argcomplete>=3',
            'safetensors>=0.4',
            'onnx>=1.16',
            'distributed>=2024.1',
            'tensorboard>=2.17',
            'build>=1.2',
            'pre-commit>=3.8',
        ],
    },
    entry_points={'console_scripts': ['keyseg=keyseg_mm.cli:main']},
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Topic :: Security :: Cryptography',
    ],
)
