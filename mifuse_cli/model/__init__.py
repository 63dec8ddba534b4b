"""Encoder, features, head and checkpoints: everything of a classifier that needs torch."""

import os

# On processors with AMX, convolutions in bfloat16 are wrong in torch 2.11 (relative errors above 1 for few channels):
# its oneDNN is kept from using these instructions. It looks when it is first used; float32 does not need them.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
