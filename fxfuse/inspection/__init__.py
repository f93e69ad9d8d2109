"""`fxfuse inspect`: the residual streams of a model line by line, its chains, and why not more."""
