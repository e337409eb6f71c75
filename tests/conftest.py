"""What a machine cannot run is not collected, so that no test is ever skipped."""

import torch

collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("cuda")
elif torch.cuda.device_count() < 2:
    collect_ignore.append("cuda/test_several_gpus.py")
