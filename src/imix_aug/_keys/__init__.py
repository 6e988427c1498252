"""The keys that queries are contrasted with: of this process, or of all ranks."""
