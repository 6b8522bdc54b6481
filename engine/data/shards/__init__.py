"""Tar shards in WebDataset form: read by offset through an index, never extracted; writer.py writes them."""

from .source import Shards, find_shards

__all__ = ["Shards", "find_shards"]
