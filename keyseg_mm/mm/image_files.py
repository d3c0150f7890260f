"""Image files: read as the host reads them, encrypted by a step of its pipelines, written without loss."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from numpy.typing import NDArray
from tqdm import tqdm

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import pipeline_of, type_of

Convert = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # of an image (H, W, 3), blue first

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
# Of a test pipeline these have no say in what the image is: they read, wrap up or encrypt it.
_NOT_GEOMETRY = ('Load', 'Pack', 'Encrypt')


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as the host's loader gives it, (H, W, 3), uint8, blue first.

    Raises:
        KeysegError: missing, cut short, or no image.
    """
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()  # unlike the host's reader, it tells where a file is cut short
        image: NDArray[np.uint8] | None = mmcv.imfrombytes(content, flag='color', backend='cv2')
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, cv2.error) as error:
        raise KeysegError(f'{path}: could not be read as an image: {error}') from None
    if image is None:
        raise KeysegError(f'{path}: could not be read as an image')
    return image


def images_below(folder: Path) -> dict[Path, Path]:
    """The images in a folder, each by the name, below it, of the PNG that is to be made of it.

    Raises:
        KeysegError: there are none, or two would get one name.
    """
    named: dict[Path, Path] = {}
    for path in sorted(path for path in Path(folder).rglob('*') if path.is_file()):
        if path.suffix.lower() in SUFFIXES:
            name = path.relative_to(folder).with_suffix('.png')
            if name in named:
                raise KeysegError(f'{named[name]} and {path} would both become {name}; rename one of them')
            named[name] = path
    if not named:
        raise KeysegError(f'{folder}: no images in it')
    return named


def refuse_lossy(path: Path) -> None:
    """Refuse a name that is not that of a PNG file.

    Raises:
        KeysegError: with the reason.
    """
    if path.suffix.lower() != '.png':
        raise KeysegError(
            f'{path}: an encrypted image is written as PNG. JPEG and the like change pixels, which is hardly seen in a '
            'photo, and ruins an encrypted one; name a .png file'
        )


def convert_file(source: Path, target: Path, convert: Convert) -> None:
    """Write a converted image as PNG, whole or not at all."""
    image = read_image(source)
    try:
        done, content = cv2.imencode('.png', convert(image))
    except KeysegError as error:
        raise KeysegError(f'{source}: {error}') from None
    if not done:
        raise KeysegError(f'{target}: could not be encoded as PNG')
    write_new(target, lambda file: file.write(content.tobytes()))


def convert_folder(images: Mapping[Path, Path], target: Path, convert: Convert) -> None:
    """Convert the images of :func:`images_below` into a new folder, all or none."""
    try:
        for name, source in tqdm(images.items(), unit='image', disable=None):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            convert_file(source, target / name, convert)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def preparation(cfg: Any) -> Convert:
    """What a config's test pipeline does to an image before it is encrypted: resizing, mostly.

    Raises:
        KeysegError: there is no such pipeline, or it has several branches.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    pipeline = pipeline_of(cfg)
    if 'TestTimeAug' in map(type_of, pipeline):
        raise KeysegError('this config augments in testing, and makes several images of one')
    steps = Compose([step for step in pipeline if not type_of(step).startswith(_NOT_GEOMETRY)])

    def prepare(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = image.shape[:2]
        found: NDArray[np.uint8] = steps({'img': image, 'img_shape': size, 'ori_shape': size})['img']
        return found

    return prepare
