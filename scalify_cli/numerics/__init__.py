"""Statistics of tensors: log2 histograms, signal-to-noise, losses at either end of the range."""
