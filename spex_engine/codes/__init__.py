"""Error-correcting codes: what coded sampling needs, and nothing that knows of masks or models."""
