"""torch.fx graphs: the view that matchers read and the rewrite."""
