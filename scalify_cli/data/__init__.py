"""Text as token batches: corpora, tokenizers, splits and their cache."""

from scalify_cli.data.corpora import HuggingFace, Sotu, Text
from scalify_cli.data.dataset import Dataset

__all__ = ["Dataset", "HuggingFace", "Sotu", "Text"]
