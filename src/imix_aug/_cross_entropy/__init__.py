"""Soft cross-entropy over many keys, whose logits are never stored."""
