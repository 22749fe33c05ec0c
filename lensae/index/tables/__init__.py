"""The tables of a segment. Each maps a feature to entries, and tables of neighbouring segments combine into one.

postings      every row on which a feature fires, strongest first
contexts      the strongest different contexts in which it fires
tokens        the tokens on which it fires
documents     the documents in which it fires
labels        the labels of these documents
label_bins    how strongly it fires in the documents of each label
"""

from lensae.index.tables import contexts, documents, labels, postings, tokens
from lensae.index.tables._table import Entries, Firings, ShardColumns, Table

TABLES: tuple[Table, ...] = (
    postings.TABLE,
    contexts.TABLE,
    tokens.TABLE,
    documents.TABLE,
    labels.TABLE,
    labels.BINS_TABLE,
)

__all__ = ["TABLES", "Entries", "Firings", "ShardColumns", "Table"]
