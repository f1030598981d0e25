"""Vision papers that work: importable parts, recipes for your own images, and claims measured beside the paper's numbers."""

__version__ = "0.1.0"
