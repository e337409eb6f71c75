"""Draws garments at sizes and shapes that training never had: a row per class, each column one factor on its own size.

python tools/draw_sizes.py docs/fashion-sizes.png
"""

import sys

from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.sampling.generate import generate
from fitv2.sampling.spec import SampleSpec, Sampling, scaled_size
from fitv2.sheets import contact_sheet, to_image

FACTORS = (1.0, 1.2, 1.43, 2.0)

pretrained = load_pretrained("builtin:fashion")
patch = pretrained.model.config.patch_size
specs, captions = [], []
for label, name in enumerate(pretrained.class_names):
    height, width, _ = pretrained.shapes[label][0]
    sizes = [scaled_size((height, width), factor, patch) for factor in FACTORS]
    for size, factor in zip([*sizes, (width, height)], [*FACTORS, None], strict=True):
        specs.append(SampleSpec(label, size, seed=label))
        captions.append(f"{name} {f'{factor:g}x' if factor else 'turned'}")
latents = generate(pretrained.model, specs, Sampling())
contact_sheet([to_image(latent) for latent in latents], captions, columns=len(FACTORS) + 1).save(sys.argv[1])
print(sys.argv[1])
