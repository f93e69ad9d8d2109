"""The version, written once: packaging, the command line and reports read it here."""

__version__ = "0.1.0"
