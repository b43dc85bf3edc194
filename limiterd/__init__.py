"""limiterd: detects links in sustained excess, shapes them with tc/HTB, holds the limit, releases it."""

__version__ = "0.1.0"
DEFAULT_CONFIG = "/etc/limiterd/limiterd.yaml"
