"""The operators under ``torch.ops.svdrd``: opcheck, compilers, transforms, and who computes."""
