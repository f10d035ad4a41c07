"""Graph passes: one transform per file, each a frozen dataclass whose fields are its configuration."""
