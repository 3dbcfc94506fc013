"""Tables: lists and mappings that rules and actions look things up in. table(5) of OpenSMTPD is the model."""

from mta_under_test.tables.file import FileTable
from mta_under_test.tables.table import Entry, Service, Table, TableError

__all__ = ["Entry", "FileTable", "Service", "Table", "TableError"]
