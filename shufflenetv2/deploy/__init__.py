"""Commands around training: what comes before it, and after."""
