"""lookup: DNS, tables, expansion of recipients, credentials, filters."""
