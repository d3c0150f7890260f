"""Packaging of keyseg_mm. configs/ and tools/ travel in the wheel as keyseg_mm/.mim/, where mmengine looks for them."""

import gzip
import io
import os
import re
import tarfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'keyseg_mm/__init__.py').read_text())[1]

# What a customer's machine needs beside numpy and cryptography is its runtime; all else comes with an extra.
TORCH = ['torch>=2.1', 'tqdm>=4.60', 'scipy>=1.10', 'jinja2>=3.1']
EXPORT = ['onnx>=1.16', 'onnxscript>=0.2', 'onnxruntime>=1.17']
# mmengine, mmcv and mmseg come with one of the two stacks; the core pins neither.
STACKS = {
    # mmsegmentation 1.2.2 imports ftfy and regex without declaring them; mmengine 0.10.7 needs pkg_resources, which
    # setuptools 81 and later warn of or lack
    'openmmlab': [
        *TORCH,
        'mmsegmentation>=1.2.2',
        'mmengine>=0.10.5',
        'mmcv>=2.0.1,<2.2',
        'ftfy',
        'regex',
        'setuptools<81',
    ],
    'onedl': [*TORCH, 'onedl-mmsegmentation>=1.4.2', 'onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6'],
}


class Sdist(sdist):
    """An archive that is the same, bit by bit, whenever and by whomever it is made with the same SOURCE_DATE_EPOCH."""

    def make_archive(self, *args, **kwargs):
        """Make it, and where that is set make it anew, without what is chance in it."""
        path = super().make_archive(*args, **kwargs)
        epoch = int(os.environ.get('SOURCE_DATE_EPOCH', 0))
        if not epoch:
            return path
        with tarfile.open(path) as old:
            files = [(info, old.extractfile(info).read() if info.isfile() else b'') for info in old]
        with gzip.GzipFile(path, 'wb', mtime=epoch) as packed, tarfile.open(fileobj=packed, mode='w') as new:
            for info, content in sorted(files, key=lambda file: file[0].name):
                info.uid = info.gid = 0
                info.uname = info.gname = ''
                info.mtime, info.pax_headers, info.mode = epoch, {}, 0o755 if info.mode & 0o100 else 0o644
                new.addfile(info, io.BytesIO(content))
        return path


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
    install_requires=['numpy>=1.23', 'cryptography>=50'],
    extras_require={
        **STACKS,
        'torch': TORCH,
        'export': EXPORT,
        'onnx': ['onnxruntime>=1.17'],
        'openvino': ['openvino>=2024.4'],
        'keyring': ['keyring>=24'],
        'safetensors': ['safetensors>=0.4'],
        'detection': ['mmdet>=3.3'],  # beside openmmlab's stack
        'dask': ['distributed>=2024.1'],
        'completion': ['argcomplete>=3'],
        'signing': ['model-signing>=1.1', 'pyopenssl'],  # which it imports and does not declare
        'docs': ['sphinx>=8', 'myst-parser>=4', 'furo'],
        'dev': [
            *EXPORT,
            'openvino>=2024.4',
            'pytest>=8',
            'pytest-randomly>=3.16',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.6',
            'hypothesis>=6.100',
            'ruff>=0.6',
            'mypy>=1.11',
            'argcomplete>=3',
            'safetensors>=0.4',
            'distributed>=2024.1',
            'tensorboard>=2.17',
            'build>=1.2',
            'twine>=6',
            'model-signing>=1.1',
            'pyopenssl',
            'pytest-cov>=5',
            'sphinx>=8',
            'myst-parser>=4',
            'furo',
            'pre-commit>=3.8',
        ],
    },
    cmdclass={'sdist': Sdist},
    entry_points={'console_scripts': ['keyseg=keyseg_mm.cli:main']},
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Topic :: Security :: Cryptography',
    ],
)
