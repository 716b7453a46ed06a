"""One module per LSP feature: each takes a snapshot and returns LSP types."""
