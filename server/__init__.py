"""The Spex language server: text, prompt formats, positions and LSP; no numerics."""

VERSION = "0.1.0"
