"""Tables: lists and mappings that rules and actions look things up in. table(5) of OpenSMTPD is the model."""

from mta_under_test.tables.file import FileTable
from mta_under_test.tables.passwd import PasswdTable
from mta_under_test.tables.table import Entry, Service, Table, TableError
from mta_under_test.tables.userinfo import UserInfo, find_user, system_user

__all__ = [
    "Entry",
    "FileTable",
    "PasswdTable",
    "Service",
    "Table",
    "TableError",
    "UserInfo",
    "find_user",
    "system_user",
]
