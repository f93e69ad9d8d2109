"""Choose groups: shortest paths over segments, the Pareto front, and measuring that repairs predictions."""
