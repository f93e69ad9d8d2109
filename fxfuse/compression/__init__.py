"""The whole way from a stock model to a fused one: stages, each judged against the stock model."""
