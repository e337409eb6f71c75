"""Images to begin with: on their canvas, in latents, and unchanged where they are kept."""

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.errors import UserError
from fitv2.images.autoencoder import LatentCodec, Pixels
from fitv2.images.edits import lay_out
from fitv2.images.make_images import make_images
from fitv2.sampling.spec import SampleSpec, Sampling
from tiny import CONFIG, random_model, tiny_autoencoder


def noise(height: int, width: int, mode: str = "L") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def mask_of(height: int, width: int, white: tuple[slice, slice]) -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[white] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("anchor", "top", "left"), [("center", 2, 6), ("left", 2, 0), ("right", 2, 12), ("top", 0, 6), ("bottom", 4, 6)]
)
def test_an_image_lies_at_its_side_of_the_canvas_and_stays_as_it_is(anchor, top, left):
    image = noise(8, 12)
    edit = lay_out(image, 1, 4, (12, 24), anchor=anchor)
    inside = torch.zeros(12, 24, dtype=torch.bool)
    inside[top : top + 8, left : left + 12] = True
    assert torch.equal(edit.kept, inside) and edit.strength == 1
    spec = SampleSpec(0, (12, 24), 0)
    (made,) = make_images(random_model(), Pixels(), [spec], Sampling(steps=2, solver="euler"), edits=[edit])
    pixels = np.asarray(made)
    assert np.array_equal(pixels[inside].reshape(8, 12), np.asarray(image)) and pixels[~inside].std() > 1


def test_a_mask_is_redrawn_and_nothing_else():
    image = noise(16, 16, "RGB")
    edit = lay_out(image, 3, 4, mask=mask_of(16, 16, np.s_[4:9, 2:7]))
    assert (~edit.kept).sum() == 25 and edit.strength == 1
    assert lay_out(image, 3, 4, mask=mask_of(16, 16, np.s_[4:9, 2:7]), strength=0.3).strength == 0.3


def test_an_image_alone_varies_everywhere_and_is_cut_to_whole_patches():
    edit = lay_out(noise(18, 23), 1, 4)
    assert edit.kept is None and edit.strength == 0.6 and edit.pixels.shape == (1, 16, 20)
    expected = torch.from_numpy(np.asarray(noise(18, 23))[1:17, 1:21] / 127.5 - 1).float()
    torch.testing.assert_close(edit.pixels[0], expected)
    assert edit.start(Pixels()).time == pytest.approx(0.4)


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    pixels = lay_out(image, 3, 4).pixels
    assert bool((pixels[:, 0, 0] == -1).all()) and bool((pixels[:, 1:] == 1).all())


def test_images_of_16_bits_are_scaled():
    grey = Image.fromarray(np.full((8, 8), 30000, np.uint16))
    assert lay_out(grey, 1, 4).pixels.mean() == pytest.approx(30000 / 32767.5 - 1, abs=0.01)
    nearly_black = Image.fromarray(np.full((8, 8), 300, np.uint16))
    with pytest.raises(UserError, match="no part of the mask"):
        lay_out(grey, 1, 4, mask=nearly_black)
    with pytest.raises(UserError, match="not ndarray"):
        lay_out(np.zeros((8, 8), np.uint8), 1, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (8, 8)}, "smaller than the image"),
        ({"mask": mask_of(8, 8, np.s_[:, :])}, "the same size"),
        ({"mask": mask_of(16, 16, np.s_[0:0, :])}, "no part of the mask"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"anchor": "lift"}, "left"),
        ({"unit": 32}, "smaller than a patch"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        lay_out(noise(16, 16), **{"channels": 1, "unit": 4} | given)


def test_through_an_autoencoder_kept_pixels_stay_exact_and_cells_are_kept_whole():
    codec = LatentCodec(tiny_autoencoder(), "cpu")
    image = noise(32, 32, "RGB")
    edit = lay_out(image, 3, codec.factor * CONFIG.patch_size, mask=mask_of(32, 32, np.s_[0:9, 0:8]))
    start = edit.start(codec)
    assert start.latent.shape == (4, 4, 4) and start.kept.tolist() == [
        [False, True, True, True], [False, True, True, True], [True] * 4, [True] * 4
    ]  # fmt: skip
    made = edit.finish(codec.decode(start.latent))
    assert torch.equal(made[:, edit.kept], edit.pixels[:, edit.kept])
    assert not torch.equal(made, edit.pixels)
