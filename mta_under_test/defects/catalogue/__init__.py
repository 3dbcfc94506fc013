"""The catalogue: one file for each process of the mail server, and one for the innocents."""
