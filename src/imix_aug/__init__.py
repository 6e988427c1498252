"""i-Mix for contrastive representation learning in PyTorch."""
