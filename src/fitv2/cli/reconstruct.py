"""`fitv2 reconstruct`: how well an autoencoder gives images back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..messages import counted
from .options import Device, Json
from .output import show

if TYPE_CHECKING:
    from PIL import Image

# Pairs on a sheet.
SHOWN = 16


def reconstruct(
    name: Annotated[
        str,
        typer.Argument(
            metavar="AUTOENCODER", help="a run of 'fitv2 autoencoder', a folder that diffusers loads, or a hub id"
        ),
    ],
    data: Annotated[
        str, typer.Option("--data", "-d", help="a folder of images that it was not trained on, or an .npz archive")
    ],
    num_images: Annotated[
        int | None, typer.Option("--num-images", "-n", min=1, help="number of images, evenly spread; default: all")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help=f"a PNG file for {SHOWN} images beside their reconstructions")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the --sheet file if it exists")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure an autoencoder: PSNR, SSIM and FD-ENLite0 of images after encoding and decoding, each at its own size.

    [bold]Examples[/bold]

      fitv2 reconstruct runs/autoencoder --data other/images --sheet pairs.png

    PSNR and SSIM are means over the images, in 8 bits; large images are processed in tiles, as in sampling. FD-ENLite0
    is the Frechet distance between the features of both sets. It depends on the number of images, and favours
    autoencoders of 'fitv2 autoencoder', which are trained with features of the same network.
    """
    from ..data.dataset import evenly
    from ..evaluation.evaluate import cache_folder
    from ..evaluation.extractors import EfficientNetExtractor
    from ..evaluation.image_sets import open_images
    from ..evaluation.reconstruction import score_reconstructions
    from ..images.autoencoder import LatentCodec, load_autoencoder
    from ..system.device import choose_device
    from .progress import image_progress

    if sheet is not None and sheet.is_dir():
        raise UserError(f"--sheet {sheet} is a folder; name a PNG file")
    if sheet is not None and sheet.exists() and not overwrite:
        raise UserError(f"--sheet {sheet} is there already; name another file, or add --overwrite to replace it")
    chosen = str(choose_device(device))
    codec = load_autoencoder(name, chosen)
    assert isinstance(codec, LatentCodec)
    extractor, images = EfficientNetExtractor(chosen), open_images(data, cache_folder())
    indices, pairs = evenly(len(images), num_images or len(images)).tolist(), []

    def keep(image: Image.Image, made: Image.Image) -> None:
        if len(pairs) < 2 * SHOWN:
            pairs.extend((image, made))

    with image_progress("reconstructing", len(indices)) as done:
        read = images.read(indices, "RGB", lambda image: image)
        means = score_reconstructions(codec, iter(read), extractor, done, keep if sheet is not None else None)
    if sheet is not None:
        from ..images.sheets import contact_sheet, save_sheet

        save_sheet(contact_sheet(pairs, ["image", "reconstruction"] * (len(pairs) // 2)), sheet)
    distance = "" if means["fd"] is None else f", FD-ENLite0 {means['fd']:.2f}"
    line = f"PSNR {means['psnr']:.2f} dB, SSIM {means['ssim']:.4f}{distance}"
    show(
        {"autoencoder": name, "data": data, **means}, [f"{line} ({counted(len(indices), 'image')} of {data})"], as_json
    )
