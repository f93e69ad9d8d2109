"""Tensor parallel through torch.distributed: every rank holds a share of each FFN, one all-reduce a group."""
