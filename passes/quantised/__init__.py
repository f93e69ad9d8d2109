"""Weight-quantised products: what they mean, how they are stacked without a change, and how anew."""
