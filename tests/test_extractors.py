"""Networks that see images: Inception as torch-fidelity has it, what EfficientNet and the classifier of garments see.

data/fashion-test-500.npz: 50 test images of each class of Fashion-MNIST (MIT, Copyright 2017 Zalando SE), on which
nothing is trained; written by tools/build_fashion_bundle.py.

data/inception-random.safetensors: what torch-fidelity 0.4.0's Inception v3 says of `random_images` with
`random_weights`: its input, Mixed_6d.branch1x1, pool_3 and logits without bias. The true weights were not at hand.
"""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluations import classified
from fitv2.data.emoji import read_drawings
from fitv2.evaluation.extractors import (
    BATCH,
    EfficientNetExtractor,
    Features,
    GarmentExtractor,
    canvas,
    extract,
    load_extractor,
)
from fitv2.evaluation.inception import InceptionV3, resize_like_tensorflow

GOLDEN = Path(__file__).parent / "data/inception-random.safetensors"


def random_weights(network: nn.Module) -> dict[str, Tensor]:
    """By name alone, and of a size that keeps numbers near one through all layers."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            weights[name] = tensor
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            weights[name] = noise * (2 / tensor[0].numel()) ** 0.5
        else:
            weights[name] = noise.abs() / 4 + 0.8 if name.endswith(("bn.weight", "running_var")) else noise / 10
    return weights


def random_images() -> Tensor:
    """(2, 3, 40, 350) uint8: enlarged on one axis, reduced on the other."""
    return torch.randint(0, 256, (2, 3, 40, 350), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(random_weights(InceptionV3()), path)
    return load_extractor("inception", "cpu", path)


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetExtractor:
    return EfficientNetExtractor("cpu")


def test_inception_is_that_of_torch_fidelity(inception):
    golden = load_file(GOLDEN)
    x = (resize_like_tensorflow(random_images().float(), 299) - 128) / 128
    torch.testing.assert_close(x[:, :, ::37, ::41], golden["input"], rtol=0, atol=1e-6)
    with torch.inference_mode():
        pooled, spatial, logits = inception.network(x)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(pooled, golden["pooled"], **close)
    torch.testing.assert_close(logits, golden["logits"], **close)
    torch.testing.assert_close(spatial[:, :, ::5, ::3], golden["spatial"], **close)
    seen = inception(random_images())
    assert torch.equal(seen.pooled, pooled)
    torch.testing.assert_close(seen.probabilities, golden["logits"].softmax(1), **close)
    # As ADM flattens (17, 17, 192)[..., :7]: places first.
    assert seen.spatial.shape == (2, 2023)
    torch.testing.assert_close(seen.spatial.view(2, 17, 17, 7)[:, 5, 3], spatial[:, :7, 5, 3])


def test_inception_has_the_names_of_the_published_weights():
    """Of pt_inception-2015-12-05, as pytorch-fid and torch-fidelity name them."""
    state = InceptionV3().state_dict()
    assert sum(not name.endswith("num_batches_tracked") for name in state) == 472
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["Mixed_6c.branch7x7dbl_5.conv.weight"].shape == (192, 160, 1, 7)
    assert state["Mixed_7a.branch7x7x3_4.bn.running_var"].shape == (192,)
    assert state["fc.bias"].shape == (1008,)


def test_inception_refuses_other_weights(tmp_path):
    torch.save({"fc.weight": torch.zeros(10, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth"):
        load_extractor("inception", "cpu", tmp_path / "other.pth")
    with pytest.raises(ValueError, match="--inception-weights FILE"):
        load_extractor("inception", "cpu")
    with pytest.raises(ValueError, match="and no other, needs"):
        load_extractor("garments", "cpu", tmp_path / "other.pth")
    with pytest.raises(ValueError, match="'fid'"):
        load_extractor("fid", "cpu")


def crossword(height: int, width: int) -> Image.Image:
    page = Image.new("RGB", (width, height), "white")
    draw, dark = ImageDraw.Draw(page), np.random.default_rng(0).random((15, 15)) < 0.2
    for i, j in np.ndindex(15, 15):
        box = (i * width // 15, j * height // 15, (i + 1) * width // 15, (j + 1) * height // 15)
        draw.rectangle(box, fill="black" if dark[i, j] else None, outline="black")
    return page


def traffic_light() -> Image.Image:
    page = Image.new("RGB", (500, 500), (120, 170, 230))
    draw = ImageDraw.Draw(page)
    draw.rectangle((190, 60, 310, 420), fill=(20, 20, 20))
    draw.rectangle((240, 420, 258, 500), fill=(40, 40, 40))
    for top, colour in ((80, (255, 40, 30)), (190, (70, 60, 0)), (300, (0, 60, 20))):
        draw.ellipse((205, top, 295, top + 90), fill=colour)
    return page


def test_efficientnet_recognises_drawings(efficientnet):
    """Its weights are those of ImageNet, and images are put into it as it learned them: colours, range, classes."""
    drawn = {"crossword puzzle": crossword(300, 300), "traffic light": traffic_light()}
    for name, image in drawn.items():
        (seen,) = extract(efficientnet, [image], lambda count: None)
        assert efficientnet.class_names[int(seen.probabilities.argmax())] == name
    assert (seen.pooled.shape, seen.spatial.shape) == ((1, 1280), (1, 1372))
    assert float(seen.probabilities.sum()) == pytest.approx(1, abs=1e-5)


def test_the_probe_names_drawings():
    probe = load_extractor("drawings", "cpu")
    chosen = read_drawings()[::37]
    pages = []
    for drawing in chosen:
        cut = Image.open(io.BytesIO(drawing.content)).convert("RGBA")
        page = Image.new("RGBA", cut.size, "white")
        page.alpha_composite(cut)
        pages.append(page.convert("RGB"))
    seen = torch.cat([features.probabilities for features in extract(probe, pages, lambda count: None)])
    best = [probe.class_names[i] for i in seen.argmax(1).tolist()]
    assert sum(name == drawing.label for name, drawing in zip(best, chosen, strict=True)) > 0.8 * len(chosen)
    # On drawings of an artist that it never saw it must be far above chance, which is one in 500.
    assert all(0.2 < first < five < 1 for first, five in probe.unseen.values()) and len(probe.unseen) == 3
    assert probe.digest != EfficientNetExtractor("cpu").digest


def test_efficientnet_stretches_without_cutting_off(efficientnet):
    """A crossword squeezed to half of its width is another shape, and the same to the network."""
    images = [crossword(448, 448), crossword(448, 448).resize((224, 448)), traffic_light()]
    (seen,) = extract(efficientnet, images, lambda count: None)
    square, squeezed, other = seen.pooled
    assert (square - squeezed).norm() < 0.3 * (square - other).norm()


def test_efficientnet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"fitv2\[evaluate\]"):
        load_extractor("efficientnet-lite0", "cpu")


@pytest.fixture(scope="module")
def held_out() -> tuple[list[np.ndarray], Tensor]:
    """500 garments (h, w) of the test split and their labels (500,)."""
    with np.load(Path(__file__).parent / "data/fashion-test-500.npz") as archive:
        hw, pixels, labels = archive["hw"].astype(int), archive["pixels"], archive["labels"].astype(int)
    parts = np.split(pixels, np.cumsum(hw.prod(1))[:-1])
    return [part.reshape(size) for part, size in zip(parts, hw, strict=True)], torch.from_numpy(labels)


def on_canvas(images: list[np.ndarray]) -> Tensor:
    return torch.cat([canvas(torch.from_numpy(image.copy())[None, None].float() / 127.5 - 1) for image in images])


def enlarged(image: np.ndarray) -> np.ndarray:
    """Twice the size."""
    height, width = image.shape
    return np.asarray(Image.fromarray(image).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))


def test_canvas_keeps_the_pixels_of_a_real_garment(held_out):
    image = next(image for image in held_out[0] if image.shape == (28, 12))
    (page,) = on_canvas([image])
    assert page.shape == (1, 28, 28) and torch.equal(page[0, :, 8:20], torch.from_numpy(image) / 127.5 - 1)
    assert (page[0, :, :8] == -1).all() and (page[0, :, 20:] == -1).all()


def test_canvas_scales_to_a_longer_side_of_28(held_out):
    images = held_out[0][:100]
    original = on_canvas(images)
    difference = (on_canvas([*map(enlarged, images)]) - original).abs().mean()
    assert difference < 0.05
    for axis in (2, 3):
        assert difference < (original.roll(1, axis) - original).abs().mean() / 2
    rows, columns = (torch.nonzero((canvas(torch.ones(1, 1, 14, 7))[0, 0] > 0).any(axis))[:, 0] for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, 27) and (columns[0], columns[-1]) == (7, 20)
    for shape in ((4, 400), (1, 1)):
        assert canvas(torch.ones(2, 1, *shape)).shape == (2, 1, 28, 28)


def test_the_classifier_recognises_held_out_garments_of_all_sizes(held_out):
    images, labels = held_out
    features, classes = classified(images)
    assert features.shape == (500, 64) and (features >= 0).all()
    assert (classes == labels).float().mean() >= 0.88
    assert (classified(map(enlarged, images))[1] == labels).float().mean() >= 0.86
    (seen,) = extract(GarmentExtractor("cpu"), map(Image.fromarray, images[:9]), lambda count: None)
    assert seen.spatial.shape == (9, 343)


class Means:
    """An extractor whose feature of an image is its mean."""

    name, score, digest, resize, mode, class_names = "means", "FD-means", "0", "none", "RGB", None

    def __init__(self) -> None:
        self.shapes = []

    def __call__(self, images: Tensor) -> Features:
        self.shapes.append(tuple(images.shape))
        means = images.float().mean((1, 2, 3))[:, None]
        return Features(means, means * 2, torch.ones_like(means))


def test_features_come_in_the_order_of_images_of_mixed_sizes():
    rng, means, counts = np.random.default_rng(0), Means(), []
    arrays = [rng.integers(0, 256, (*rng.integers(2, 4, 2), 3), dtype=np.uint8) for _ in range(11 * BATCH)]
    blocks = list(extract(means, map(Image.fromarray, arrays), counts.append))
    assert sum(counts) == len(arrays) and len(blocks) == 2
    assert {len(shape) for shape in means.shapes} == {4} and max(shape[0] for shape in means.shapes) == BATCH
    found = torch.cat([block.pooled for block in blocks])[:, 0]
    np.testing.assert_allclose(found, [array.mean() for array in arrays], rtol=1e-5)
    assert torch.equal(torch.cat([block.spatial for block in blocks])[:, 0], found * 2)
