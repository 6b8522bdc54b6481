"""Tar shards in WebDataset form: an index of where every image's bytes lie, a source that reads them, a writer."""

from .files import ShardFiles, find_shards
from .source import Shards
from .writer import SHARD_BYTES, write_shards

__all__ = ["SHARD_BYTES", "ShardFiles", "Shards", "find_shards", "write_shards"]
