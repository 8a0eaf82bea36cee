"""One job from claim to result."""
